"""Objects in MinIO or any S3 store, over the minio SDK. Every wait is finite, every failure one of two errors."""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from jobs.errors import ObjectMissing, StorageUnavailable
from jobs.settings import Settings
from jobs.storage.sigv4 import Signer


@dataclass(frozen=True, kw_only=True)
class Waits:
    """How long to wait for the store: a request's client waits less than a job does."""

    connect_s: float = 3
    read_s: float = 30  # for an answer, or for its next bytes
    retries: int = 3  # of calls that failed


OF_A_REQUEST = Waits(read_s=5, retries=1)


class Storage:
    """One bucket. Safe to share between threads, not between processes."""

    def __init__(self, client: Minio, public_client: Minio, signer: Signer, bucket: str, link_lifetime: timedelta) -> None:
        self.client = client
        self.public_client = public_client
        self.signer = signer
        self.bucket = bucket
        self.link_lifetime = link_lifetime

    @classmethod
    def from_settings(cls, settings: Settings, waits: Waits = Waits()) -> "Storage":  # it is frozen
        client = make_client(settings, settings.s3_endpoint, waits)
        public_endpoint = full(settings.s3_public_endpoint or settings.s3_endpoint)
        public_client = make_client(settings, public_endpoint, waits)
        signer = make_signer(settings, public_endpoint)
        return cls(client, public_client, signer, settings.s3_bucket, timedelta(seconds=settings.presigned_url_s))

    def has_bucket(self) -> bool:
        with translated():
            return self.client.bucket_exists(self.bucket)

    def ensure_bucket(self) -> None:
        with translated():
            if not self.client.bucket_exists(self.bucket):
                self.client.make_bucket(self.bucket)

    def check(self) -> None:
        """Raises StorageUnavailable when the bucket cannot be used."""
        if not self.has_bucket():
            raise StorageUnavailable(f"there is no bucket {self.bucket}")

    def put(self, key: str, data: bytes, media_type: str) -> None:
        with translated():
            self.client.put_object(self.bucket, key, io.BytesIO(data), len(data), content_type=media_type)

    def get(self, key: str) -> bytes:
        """Raises ObjectMissing."""
        with translated():
            response = self.client.get_object(self.bucket, key)
            try:
                return response.read()
            finally:
                response.close()
                response.release_conn()

    def size(self, key: str) -> int:
        """In bytes. Raises ObjectMissing."""
        with translated():
            return self.client.stat_object(self.bucket, key).size or 0

    def stream(self, key: str, chunk_bytes: int = 2**18, *, length: int = 0) -> Iterator[bytes]:
        """An object in parts. Raises ObjectMissing.

        Args:
            length: of its beginning, in bytes; 0 is all of it.
        """
        with translated():
            response = self.client.get_object(self.bucket, key, length=length)
            try:
                yield from response.stream(chunk_bytes)
            finally:
                response.close()
                response.release_conn()

    def keys(self, prefix: str) -> Iterator[str]:
        """Of all objects whose key begins so."""
        with translated():
            for found in self.client.list_objects(self.bucket, prefix=prefix, recursive=True):
                if found.object_name is not None:
                    yield found.object_name

    def remove(self, keys: Iterable[str]) -> None:
        """Delete objects; one that is not there is no error."""
        with translated():
            wanted = [DeleteObject(key) for key in keys]
            for error in self.client.remove_objects(self.bucket, wanted) if wanted else ():
                if error.code != "NoSuchKey":
                    raise StorageUnavailable(f"the store did not delete {error.name}: {error.code}")

    def url(self, key: str, filename: str) -> str:
        """A link that lets its holder download one object for a while."""
        headers: dict[str, Any] = {"response-content-disposition": f'attachment; filename="{filename}"'}
        return self.public_client.presigned_get_object(self.bucket, key, self.link_lifetime, response_headers=headers)

    def upload_url(self, key: str, headers: Mapping[str, str]) -> str:
        """A link that lets its holder upload one object for a while, with these headers and no others of their names."""
        return self.signer.link("PUT", f"/{self.bucket}/{key}", headers, datetime.now(UTC), self.link_lifetime)


def artifact_key(tenant: str, job_id: UUID, attempt: int, name: str) -> str:
    """The attempt is part of the key, so that a late worker can never overwrite what its successor stored."""
    return f"{job_prefix(tenant, job_id)}a{attempt}/{name}"


def job_prefix(tenant: str, job_id: UUID) -> str:
    """Of everything that is stored of a job."""
    return f"t/{tenant}/j/{job_id}/"


def upload_key(tenant: str, sha256: str) -> str:
    return f"t/{tenant}/u/{sha256}"


def raw_key(tenant: str, presigned_id: UUID) -> str:
    """Of what a client uploads by a link, until it is checked."""
    return f"t/{tenant}/p/{presigned_id}"


def full(endpoint: str) -> str:
    """With its scheme."""
    return (endpoint if "://" in endpoint else f"http://{endpoint}").rstrip("/")


def make_signer(settings: Settings, endpoint: str) -> Signer:
    secret = settings.s3_secret_key.get_secret_value()
    return Signer(endpoint=endpoint, region=settings.s3_region, access_key=settings.s3_access_key, secret_key=secret)


def make_client(settings: Settings, endpoint: str, waits: Waits) -> Minio:
    address = urlsplit(full(endpoint))
    return Minio(
        address.netloc,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        secure=address.scheme == "https",
        region=settings.s3_region,  # without it, signing a URL would ask the store first
        http_client=StorePool(
            timeout=urllib3.Timeout(connect=waits.connect_s, read=waits.read_s),
            retries=urllib3.Retry(waits.retries, backoff_factor=0.3, status_forcelist=[500, 502, 503, 504], allowed_methods=None),
            maxsize=16,
        ),
    )


class StorePool(urllib3.PoolManager):
    """Lets the SDK read the errors of stores that call their XML text/xml (rclone does)."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]
        response = super().urlopen(method, url, redirect=redirect, **options)
        if response.headers.get("content-type", "").startswith("text/xml"):
            response.headers["content-type"] = "application/xml"
        return response


@contextmanager
def translated() -> Iterator[None]:
    """The SDK's and urllib3's errors as ours."""
    try:
        yield
    except S3Error as error:
        if error.code == "NoSuchKey":
            raise ObjectMissing(f"the store has no {error.object_name or error.bucket_name}") from error
        raise StorageUnavailable(f"the store answered {error.code}") from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise StorageUnavailable(f"the store does not answer: {error}") from error
