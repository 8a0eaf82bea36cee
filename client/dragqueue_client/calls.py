"""Each call of the API as data: what to send, and how to read the answer. Both clients send these."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

import httpx2

from dragqueue_client.models import Batch, FramePage, Job, JobPage, ModelPage, Presigned, Upload, Usage

T = TypeVar("T")
TRIES = 6
FIRST_PAUSE_S = 0.25  # doubled by each further try
LONGEST_PAUSE_S = 30.0
PASSING = (429, 500, 502, 503, 504)  # answers that another try may not get
TIMEOUT_S = 30.0
BATCH_S = 900.0  # for a batch of 50,000 lines to be stored, or told of
WAIT_S = 20  # of one long poll
DIRECT_BYTES = 30 * 10**6  # larger files go straight to the store
COMPLETE_S = 300.0  # for such a file to be read there
Spec = dict[str, Any]  # a job as JSON


@dataclass(frozen=True)
class Call(Generic[T]):
    """Every one may be sent again: those that make something carry an idempotency key."""

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    options: dict[str, Any] = field(default_factory=dict)
    elsewhere: bool = False  # to a link of the store, which is not told our key

    def alone(self) -> httpx2.Request:
        """Without what a client adds to its requests."""
        return httpx2.Request(self.method, self.path, **self.options)


def submit(spec: Spec, image: bytes | None, movable: bytes | None, key: str | None) -> Call[Job]:
    headers = {"Idempotency-Key": key or str(uuid4())}
    files = {name: data for name, data in (("image", image), ("movable", movable)) if data is not None}
    body: dict[str, Any] = {"files": {"job": json.dumps(spec).encode(), **files}} if files else {"json": spec}
    return Call("POST", "/v1/jobs", read_job, body | {"headers": headers})


def get(job_id: UUID | str, artifacts: bool = False) -> Call[Job]:
    return Call("GET", f"/v1/jobs/{job_id}", read_job, {"params": {"expand": "artifacts"} if artifacts else {}})


def wait_for_change(job_id: UUID | str, etag: str | None, seconds: int) -> Call[tuple[Job | None, str | None]]:
    """The job once it differs from what the ETag stands for, and its new ETag; None when it does not in time."""
    headers = {"Prefer": f"wait={seconds}"} | ({} if etag is None else {"If-None-Match": etag})

    def read(response: httpx2.Response) -> tuple[Job | None, str | None]:
        return None if response.status_code == 304 else read_job(response), response.headers.get("etag", etag)

    return Call("GET", f"/v1/jobs/{job_id}", read, {"headers": headers, "timeout": TIMEOUT_S + seconds})


def act(job_id: UUID | str, what: str) -> Call[Job]:
    """cancel or stop, which are the same when repeated; retry, which gets a key."""
    headers = {"Idempotency-Key": str(uuid4())} if what == "retry" else {}
    return Call("POST", f"/v1/jobs/{job_id}/{what}", read_job, {"headers": headers})


def delete(job_id: UUID | str) -> Call[None]:
    return Call("DELETE", f"/v1/jobs/{job_id}", lambda response: None)


def page(cursor: str | None, filters: dict[str, Any]) -> Call[JobPage]:
    chosen = {name: value for name, value in (filters | {"cursor": cursor, "limit": 200}).items() if value is not None}
    return Call("GET", "/v1/jobs", lambda response: JobPage.model_validate_json(response.content), {"params": chosen})


def frames(job_id: UUID | str, cursor: str) -> Call[FramePage]:
    options = {"params": {"cursor": cursor, "limit": 200}}
    path = f"/v1/jobs/{job_id}/frames"
    return Call("GET", path, lambda response: FramePage.model_validate_json(response.content), options)


def fetch(url: str) -> Call[bytes]:
    return Call("GET", url, lambda response: response.content, {"follow_redirects": True})


def upload(data: bytes, kind: str | None) -> Call[Upload]:
    options = {"content": data, "params": {} if kind is None else {"kind": kind}}
    return Call("POST", "/v1/uploads", lambda response: Upload.model_validate_json(response.content), options)


def presign(data: bytes, kind: str | None) -> Call[Presigned]:
    file = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data), "kind": kind}
    return Call("POST", "/v1/uploads/presigned", lambda response: Presigned.model_validate_json(response.content), {"json": file})


def send_file(presigned: Presigned, data: bytes) -> Call[None]:
    options = {"content": data, "headers": presigned.headers}
    return Call(presigned.method, presigned.url, lambda response: None, options, elsewhere=True)


def complete(upload_id: UUID) -> Call[Upload]:
    path = f"/v1/uploads/presigned/{upload_id}/complete"
    return Call("POST", path, lambda response: Upload.model_validate_json(response.content), {"timeout": COMPLETE_S})


def models() -> Call[ModelPage]:
    return Call("GET", "/v1/models", lambda response: ModelPage.model_validate_json(response.content))


def usage() -> Call[Usage]:
    return Call("GET", "/v1/usage", lambda response: Usage.model_validate_json(response.content))


def submit_batch(lines: bytes, key: str) -> Call[Batch]:
    headers = {"Idempotency-Key": key, "Content-Type": "application/jsonl"}
    return Call("POST", "/v1/batches", read_batch, {"content": lines, "headers": headers, "timeout": BATCH_S})


def batch(batch_id: UUID | str) -> Call[Batch]:
    return Call("GET", f"/v1/batches/{batch_id}", read_batch)


def cancel_batch(batch_id: UUID | str) -> Call[Batch]:
    return Call("POST", f"/v1/batches/{batch_id}/cancel", read_batch)


def batch_lines(batch_id: UUID | str, what: str) -> Call[bytes]:
    return Call("GET", f"/v1/batches/{batch_id}/{what}", lambda response: response.content, {"timeout": BATCH_S})


def read_job(response: httpx2.Response) -> Job:
    return Job.model_validate_json(response.content)


def read_batch(response: httpx2.Response) -> Batch:
    return Batch.model_validate_json(response.content)


def pauses() -> Iterator[float]:
    """Seconds to rest before each further try."""
    for number in range(TRIES - 1):
        yield min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**number)


def asked_to_rest_s(response: httpx2.Response) -> float:
    """What Retry-After says."""
    said = response.headers.get("retry-after", "0")
    return min(LONGEST_PAUSE_S, float(said)) if said.isdecimal() else 0.0
