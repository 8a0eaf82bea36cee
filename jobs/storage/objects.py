"""Objects in MinIO or any S3 store, over the minio SDK. Every wait has a time limit; every failure is one of two errors."""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any, BinaryIO, cast
from urllib.parse import urlsplit
from uuid import UUID

import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from jobs.errors import ObjectMissing, StorageUnavailable
from jobs.settings import Settings
from jobs.storage.sigv4 import UrlSigner


@dataclass(frozen=True, kw_only=True)
class Timeouts:
    """How long to wait for the store."""

    connect_s: float = 3
    read_s: float = 30  # for an answer, or for its next bytes
    retries: int = 3  # of a failed call


REQUEST_TIMEOUTS = Timeouts(read_s=5, retries=1)  # while a client waits for its answer


class Storage:
    """One bucket. It is safe to share between threads, not between processes."""

    def __init__(self, client: Minio, public_client: Minio, signer: UrlSigner, bucket: str, link_lifetime: timedelta) -> None:
        self.client = client
        self.public_client = public_client
        self.signer = signer
        self.bucket = bucket
        self.link_lifetime = link_lifetime

    @classmethod
    def from_settings(cls, settings: Settings, timeouts: Timeouts = Timeouts()) -> "Storage":  # the default is frozen
        client = make_client(settings, settings.s3_endpoint, timeouts)
        public_endpoint = with_scheme(settings.s3_public_endpoint or settings.s3_endpoint)
        public_client = make_client(settings, public_endpoint, timeouts)
        signer = make_signer(settings, public_endpoint)
        return cls(client, public_client, signer, settings.s3_bucket, timedelta(seconds=settings.presigned_url_s))

    def has_bucket(self) -> bool:
        """Return whether the store has the bucket."""
        with translate_errors():
            return self.client.bucket_exists(self.bucket)

    def ensure_bucket(self) -> None:
        """Create the bucket when the store does not have it."""
        with translate_errors():
            if not self.client.bucket_exists(self.bucket):
                self.client.make_bucket(self.bucket)

    def check(self) -> None:
        """Raise StorageUnavailable when the bucket cannot be used."""
        if not self.has_bucket():
            raise StorageUnavailable(f"there is no bucket {self.bucket}")

    def put(self, key: str, data: bytes, media_type: str) -> None:
        """Store an object."""
        self.put_file(key, io.BytesIO(data), media_type)

    def put_file(self, key: str, file: IO[bytes], media_type: str) -> None:
        """Store a whole file as an object, read in parts."""
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        with translate_errors():
            self.client.put_object(self.bucket, key, cast(BinaryIO, file), size, content_type=media_type)

    def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises ObjectMissing."""
        with translate_errors():
            response = self.client.get_object(self.bucket, key)
            try:
                return response.read()
            finally:
                response.close()
                response.release_conn()

    def size(self, key: str) -> int:
        """Return an object's size in bytes. Raises ObjectMissing."""
        with translate_errors():
            return self.client.stat_object(self.bucket, key).size or 0

    def stream(self, key: str, chunk_bytes: int = 2**18, *, length: int = 0) -> Iterator[bytes]:
        """Yield an object in chunks. Raises ObjectMissing.

        Args:
            length: the number of bytes to read from its beginning; 0 reads all of it.
        """
        with translate_errors():
            response = self.client.get_object(self.bucket, key, length=length)
            try:
                yield from response.stream(chunk_bytes)
            finally:
                response.close()
                response.release_conn()

    def keys(self, prefix: str) -> Iterator[str]:
        """Yield the keys of all objects that begin with the prefix."""
        with translate_errors():
            for found in self.client.list_objects(self.bucket, prefix=prefix, recursive=True):
                if found.object_name is not None:
                    yield found.object_name

    def remove(self, keys: Iterable[str]) -> None:
        """Delete objects. A missing object is no error. Raises StorageUnavailable."""
        with translate_errors():
            wanted = [DeleteObject(key) for key in keys]
            for error in self.client.remove_objects(self.bucket, wanted) if wanted else ():
                if error.code != "NoSuchKey":
                    raise StorageUnavailable(f"the store did not delete {error.name}: {error.code}")

    def make_download_url(self, key: str, filename: str) -> str:
        """Make a link that lets its holder download one object for a while."""
        headers: dict[str, Any] = {"response-content-disposition": f'attachment; filename="{filename}"'}
        return self.public_client.presigned_get_object(self.bucket, key, self.link_lifetime, response_headers=headers)

    def make_upload_url(self, key: str, headers: Mapping[str, str]) -> str:
        """Make a link that lets its holder upload one object for a while, with exactly these values of the headers."""
        return self.signer.presign("PUT", f"/{self.bucket}/{key}", headers, datetime.now(UTC), self.link_lifetime)


def artifact_key(tenant: str, job_id: UUID, attempt: int, name: str) -> str:
    """Return an artifact's key. It contains the attempt, so that a late worker never overwrites its successor's object."""
    return f"{job_prefix(tenant, job_id)}a{attempt}/{name}"


def job_prefix(tenant: str, job_id: UUID) -> str:
    """Return the prefix of all keys of a job."""
    return f"t/{tenant}/j/{job_id}/"


def upload_key(tenant: str, sha256: str) -> str:
    """Return the key of an upload."""
    return f"t/{tenant}/u/{sha256}"


def raw_key(tenant: str, presigned_id: UUID) -> str:
    """Return the key of a file that a client sent by an upload link and that is not checked yet."""
    return f"t/{tenant}/p/{presigned_id}"


def with_scheme(endpoint: str) -> str:
    """Return the endpoint's URL, with http:// where it has no scheme."""
    return (endpoint if "://" in endpoint else f"http://{endpoint}").rstrip("/")


def make_signer(settings: Settings, endpoint: str) -> UrlSigner:
    """Make the signer of upload links for an endpoint."""
    secret = settings.s3_secret_key.get_secret_value()
    return UrlSigner(endpoint=endpoint, region=settings.s3_region, access_key=settings.s3_access_key, secret_key=secret)


def make_client(settings: Settings, endpoint: str, timeouts: Timeouts) -> Minio:
    """Make an SDK client for an endpoint."""
    address = urlsplit(with_scheme(endpoint))
    return Minio(
        address.netloc,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        secure=address.scheme == "https",
        region=settings.s3_region,  # without it, the SDK asks the store before it signs a URL
        http_client=StorePool(
            timeout=urllib3.Timeout(connect=timeouts.connect_s, read=timeouts.read_s),
            retries=urllib3.Retry(
                timeouts.retries, backoff_factor=0.3, status_forcelist=[500, 502, 503, 504], allowed_methods=None
            ),
            maxsize=16,
        ),
    )


class StorePool(urllib3.PoolManager):
    """A pool that lets the SDK read the errors of stores whose XML has the type text/xml, such as rclone."""

    def urlopen(self, method: str, url: str, redirect: bool = True, **options: Any) -> urllib3.BaseHTTPResponse:  # type: ignore[override]
        response = super().urlopen(method, url, redirect=redirect, **options)
        if response.headers.get("content-type", "").startswith("text/xml"):
            response.headers["content-type"] = "application/xml"
        return response


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise ObjectMissing or StorageUnavailable in place of the errors of the SDK and urllib3."""
    try:
        yield
    except S3Error as error:
        if error.code == "NoSuchKey":
            raise ObjectMissing(f"the store has no {error.object_name or error.bucket_name}") from error
        raise StorageUnavailable(f"the store answered {error.code}") from error
    except (MinioException, urllib3.exceptions.HTTPError, OSError) as error:
        raise StorageUnavailable(f"the store does not answer: {error}") from error
