"""The calls of the API as data: what to send, and how to read the response. Both clients send them."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar
from uuid import UUID, uuid4

import httpx2

from dragqueue_client.models import Batch, FramePage, Job, JobPage, ModelPage, PresignedUpload, Upload, Usage

T = TypeVar("T")
MAX_TRIES = 6
FIRST_DELAY_S = 0.25  # doubled after each further try
MAX_DELAY_S = 30.0
RETRYABLE = (429, 500, 502, 503, 504)  # statuses that a later try may not get
TIMEOUT_S = 30.0
BATCH_TIMEOUT_S = 900.0  # while the service stores or lists a batch of 50,000 lines
LONG_POLL_S = 20
MAX_DIRECT_UPLOAD_BYTES = 30 * 10**6  # larger files go straight to the store
COMPLETE_TIMEOUT_S = 300.0  # while the service reads such a file in the store
Spec = dict[str, Any]  # a job as JSON


@dataclass(frozen=True)
class Call(Generic[T]):
    """A call that may be sent again: one that creates something carries an idempotency key."""

    method: str
    path: str
    read: Callable[[httpx2.Response], T]
    options: dict[str, Any] = field(default_factory=dict)
    to_store: bool = False  # a link of the store, which must not see the API key

    def bare_request(self) -> httpx2.Request:
        """Return the request without the headers that a client adds."""
        return httpx2.Request(self.method, self.path, **self.options)


def submit(spec: Spec, image: bytes | None, movable: bytes | None, key: str | None) -> Call[Job]:
    """Return the call that queues an edit, as one request with the files that it needs."""
    headers = {"Idempotency-Key": key or str(uuid4())}
    files = {name: data for name, data in (("image", image), ("movable", movable)) if data is not None}
    body: dict[str, Any] = {"files": {"job": json.dumps(spec).encode(), **files}} if files else {"json": spec}
    return Call("POST", "/v1/jobs", read_job, body | {"headers": headers})


def get(job_id: UUID | str, artifacts: bool = False) -> Call[Job]:
    """Return the call that reads a job."""
    return Call("GET", f"/v1/jobs/{job_id}", read_job, {"params": {"expand": "artifacts"} if artifacts else {}})


def wait_for_change(job_id: UUID | str, etag: str | None, seconds: int) -> Call[tuple[Job | None, str | None]]:
    """Return the call that reads a job and its ETag once the job has changed; the job is None if it has not in time."""
    headers = {"Prefer": f"wait={seconds}"} | ({} if etag is None else {"If-None-Match": etag})

    def read(response: httpx2.Response) -> tuple[Job | None, str | None]:
        return None if response.status_code == 304 else read_job(response), response.headers.get("etag", etag)

    return Call("GET", f"/v1/jobs/{job_id}", read, {"headers": headers, "timeout": TIMEOUT_S + seconds})


def act_on_job(job_id: UUID | str, action: str) -> Call[Job]:
    """Return the call that cancels, stops or retries a job; only a retry needs an idempotency key."""
    headers = {"Idempotency-Key": str(uuid4())} if action == "retry" else {}
    return Call("POST", f"/v1/jobs/{job_id}/{action}", read_job, {"headers": headers})


def delete_job(job_id: UUID | str) -> Call[None]:
    """Return the call that deletes an ended job."""
    return Call("DELETE", f"/v1/jobs/{job_id}", lambda response: None)


def list_jobs(cursor: str | None, filters: dict[str, Any]) -> Call[JobPage]:
    """Return the call that lists the jobs after a cursor."""
    chosen = {name: value for name, value in (filters | {"cursor": cursor, "limit": 200}).items() if value is not None}
    return Call("GET", "/v1/jobs", lambda response: JobPage.model_validate_json(response.content), {"params": chosen})


def list_frames(job_id: UUID | str, cursor: str) -> Call[FramePage]:
    """Return the call that lists the frames after a cursor; an empty cursor means the first page."""
    options = {"params": {"cursor": cursor, "limit": 200}}
    path = f"/v1/jobs/{job_id}/frames"
    return Call("GET", path, lambda response: FramePage.model_validate_json(response.content), options)


def fetch(url: str) -> Call[bytes]:
    """Return the call that downloads an artifact; the service redirects to the store."""
    return Call("GET", url, lambda response: response.content, {"follow_redirects": True})


def upload(data: bytes, kind: str | None) -> Call[Upload]:
    """Return the call that uploads a file through the service."""
    options = {"content": data, "params": {} if kind is None else {"kind": kind}}
    return Call("POST", "/v1/uploads", lambda response: Upload.model_validate_json(response.content), options)


def presign(data: bytes, kind: str | None) -> Call[PresignedUpload]:
    """Return the call that asks for a link to which a large file may be sent."""
    file = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data), "kind": kind}
    return Call(
        "POST", "/v1/uploads/presigned", lambda response: PresignedUpload.model_validate_json(response.content), {"json": file}
    )


def send_file(presigned: PresignedUpload, data: bytes) -> Call[None]:
    """Return the call that sends a large file to the store."""
    options = {"content": data, "headers": presigned.headers}
    return Call(presigned.method, presigned.url, lambda response: None, options, to_store=True)


def complete(upload_id: UUID) -> Call[Upload]:
    """Return the call that says that a large file has been sent."""
    path = f"/v1/uploads/presigned/{upload_id}/complete"
    return Call("POST", path, lambda response: Upload.model_validate_json(response.content), {"timeout": COMPLETE_TIMEOUT_S})


def models() -> Call[ModelPage]:
    """Return the call that lists the models."""
    return Call("GET", "/v1/models", lambda response: ModelPage.model_validate_json(response.content))


def usage() -> Call[Usage]:
    """Return the call that reads the tenant's usage."""
    return Call("GET", "/v1/usage", lambda response: Usage.model_validate_json(response.content))


def submit_batch(lines: bytes, key: str) -> Call[Batch]:
    """Return the call that queues a batch."""
    headers = {"Idempotency-Key": key, "Content-Type": "application/jsonl"}
    return Call("POST", "/v1/batches", read_batch, {"content": lines, "headers": headers, "timeout": BATCH_TIMEOUT_S})


def batch(batch_id: UUID | str) -> Call[Batch]:
    """Return the call that reads a batch."""
    return Call("GET", f"/v1/batches/{batch_id}", read_batch)


def cancel_batch(batch_id: UUID | str) -> Call[Batch]:
    """Return the call that cancels a batch."""
    return Call("POST", f"/v1/batches/{batch_id}/cancel", read_batch)


def batch_lines(batch_id: UUID | str, which: str) -> Call[bytes]:
    """Return the call that reads the results or the errors of a batch as JSONL."""
    return Call("GET", f"/v1/batches/{batch_id}/{which}", lambda response: response.content, {"timeout": BATCH_TIMEOUT_S})


def read_job(response: httpx2.Response) -> Job:
    """Return the job that a response holds."""
    return Job.model_validate_json(response.content)


def read_batch(response: httpx2.Response) -> Batch:
    """Return the batch that a response holds."""
    return Batch.model_validate_json(response.content)


def retry_delays() -> Iterator[float]:
    """Yield the seconds to wait before each further try."""
    for number in range(MAX_TRIES - 1):
        yield min(MAX_DELAY_S, FIRST_DELAY_S * 2**number)


def retry_after_s(response: httpx2.Response) -> float:
    """Return the seconds that a response's Retry-After asks for, at most MAX_DELAY_S; 0 if it has none."""
    value = response.headers.get("retry-after", "0")
    return min(MAX_DELAY_S, float(value)) if value.isdecimal() else 0.0
