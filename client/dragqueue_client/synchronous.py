"""The blocking client. AsyncClient has the same methods."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import httpx2

from dragqueue_client import artifact_files, calls
from dragqueue_client.calls import Call, Spec
from dragqueue_client.errors import RequestRefused, ServiceUnavailable, WaitTimeout
from dragqueue_client.models import Artifact, Batch, BatchLine, Event, Job, JobSummary, Model, Upload, Usage

T = TypeVar("T")


class Client:
    """A client of one service with one API key; it retries with growing delays while the service is unavailable or busy.

    Every method raises RequestRefused when the service answers with an error, ServiceUnavailable when it does not answer.
    """

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx2.Client(base_url=url, headers=headers, timeout=calls.TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()

    def submit(
        self, spec: Spec, *, image: bytes | None = None, movable: bytes | None = None, idempotency_key: str | None = None
    ) -> Job:
        """Queue an edit and return its job.

        Args:
            spec: the job as the API takes it: model, source, points, ...
            image: a photo to edit, where the spec names no source.
            movable: a PNG whose non-zero pixels may change.
            idempotency_key: lets a program that was killed submit again without a second job.
        """
        return self.send(calls.submit(spec, image, movable, idempotency_key))

    def get(self, job_id: UUID | str, *, artifacts: bool = False) -> Job:
        """Return a job, with the list of its artifacts if asked for."""
        return self.send(calls.get(job_id, artifacts))

    def wait(self, job_id: UUID | str, *, on_change: Callable[[Job], None] = lambda job: None, timeout_s: float = 3600.0) -> Job:
        """Wait until a job has ended and return it.

        Args:
            on_change: called with the job whenever it has changed.

        Raises:
            WaitTimeout: the job has not ended after timeout_s.
        """
        deadline, etag = time.monotonic() + timeout_s, None
        while True:
            left = max(1, math.ceil(min(calls.LONG_POLL_S, deadline - time.monotonic())))
            job, etag = self.send(calls.wait_for_change(job_id, etag, 0 if etag is None else left))  # the first look at once
            if job is not None:
                on_change(job)
                if job.ended:
                    return job
            if time.monotonic() >= deadline:
                raise WaitTimeout(f"job {job_id} has not ended after {timeout_s:g} s")

    def events(self, job_id: UUID | str, *, after: int | None = None) -> Iterator[Event | Job]:
        """Yield the events of a job, and the job whenever it has changed, until it has ended; reconnect on a lost connection.

        Args:
            after: seq of the last event that the caller knows; the events since then come first.
        """
        delays, lost = calls.retry_delays(), Exception("the service closes the connection")
        while True:
            try:
                for seq, message in self.stream(job_id, after):
                    delays, after = calls.retry_delays(), seq
                    yield message
                    if isinstance(message, Job) and message.ended:
                        return
            except (httpx2.TransportError, RequestRefused) as error:
                if isinstance(error, RequestRefused) and error.status not in calls.RETRYABLE:
                    raise
                lost = error
            if (delay := next(delays, None)) is None:
                raise ServiceUnavailable(f"the events of job {job_id} break off again and again: {lost}")
            time.sleep(delay)

    def stream(self, job_id: UUID | str, after: int | None) -> Iterator[tuple[int, Event | Job]]:
        """Yield what `events` yields from one connection, each with the seq after which to resume."""
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": str(after)})
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            if not response.is_success:
                response.read()
                raise RequestRefused.from_response(response)
            for message in httpx2.EventSource(response):
                kind: type[Event | Job] = Job if message.event == "snapshot" else Event
                yield int(message.id), kind.model_validate_json(message.data)

    def jobs(self, *, state: str | None = None, model: str | None = None, batch: UUID | None = None) -> Iterator[JobSummary]:
        """Yield jobs, the newest first, without their specs."""
        cursor: str | None = None
        while True:
            page = self.send(calls.list_jobs(cursor, {"state": state, "model": model, "batch": batch}))
            yield from page.jobs
            if (cursor := page.next_cursor) is None:
                return

    def cancel(self, job_id: UUID | str) -> Job:
        """Cancel a job; it has no result."""
        return self.send(calls.act_on_job(job_id, "cancel"))

    def stop(self, job_id: UUID | str) -> Job:
        """End a running drag and keep its picture as the result."""
        return self.send(calls.act_on_job(job_id, "stop"))

    def retry(self, job_id: UUID | str) -> Job:
        """Queue an ended job again and return the new job."""
        return self.send(calls.act_on_job(job_id, "retry"))

    def delete(self, job_id: UUID | str) -> None:
        """Delete an ended job and everything that it stored."""
        self.send(calls.delete_job(job_id))

    def artifacts(self, job_id: UUID | str) -> Iterator[Artifact]:
        """Yield everything that a job has stored, frames last."""
        yield from self.get(job_id, artifacts=True).artifacts or []
        cursor: str | None = ""
        while cursor is not None:
            page = self.send(calls.list_frames(job_id, cursor))
            yield from page.frames
            cursor = page.next_cursor

    def fetch(self, artifact: Artifact) -> bytes:
        """Return the bytes of an artifact."""
        return self.send(calls.fetch(artifact.url))

    def download(self, job_id: UUID | str, folder: Path) -> Iterator[Path]:
        """Write every artifact of a job into a folder and yield each path; skip what an earlier call has downloaded.

        Raises:
            DownloadDamaged: the bytes are not what the service named.
        """
        for artifact in self.artifacts(job_id):
            if not artifact_files.is_downloaded(folder, artifact):
                artifact_files.write_artifact(folder, artifact, self.fetch(artifact))
            yield artifact_files.artifact_path(folder, artifact)

    def upload(self, data: bytes, *, kind: str | None = None) -> Upload:
        """Upload a photo or a latent, or with kind="mask" a mask; a file of more than 30 MB goes straight to the store."""
        if len(data) <= calls.MAX_DIRECT_UPLOAD_BYTES:
            return self.send(calls.upload(data, kind))
        presigned = self.send(calls.presign(data, kind))
        self.send(calls.send_file(presigned, data))
        return self.send(calls.complete(presigned.id))

    def models(self) -> list[Model]:
        """Return the models that jobs can name."""
        return self.send(calls.models()).models

    def usage(self) -> Usage:
        """Return what the tenant has at the moment, and the most it may have."""
        return self.send(calls.usage())

    def submit_batch(self, lines: bytes, *, idempotency_key: str | None = None) -> Batch:
        """Queue many edits, given as JSONL of {"custom_id": ..., "job": {...}}."""
        return self.send(calls.submit_batch(lines, idempotency_key or str(uuid4())))

    def batch(self, batch_id: UUID | str) -> Batch:
        """Return a batch."""
        return self.send(calls.batch(batch_id))

    def cancel_batch(self, batch_id: UUID | str) -> Batch:
        """Cancel the jobs of a batch that have not ended; keep the results of the others."""
        return self.send(calls.cancel_batch(batch_id))

    def batch_lines(self, batch_id: UUID | str, which: str = "results") -> Iterator[BatchLine]:
        """Yield the lines of a batch that succeeded, or with which="errors" all others that have ended."""
        lines = self.send(calls.batch_lines(batch_id, which)).splitlines()
        return map(BatchLine.model_validate_json, lines)

    def send(self, call: Call[T]) -> T:
        """Send a call, again with growing delays while the service is unavailable, and return what its response holds.

        Raises:
            RequestRefused: the service answered with an error.
            ServiceUnavailable: the service does not answer.
        """
        for delay in (*calls.retry_delays(), None):
            outcome = self.attempt(call)
            if isinstance(outcome, httpx2.Response) and (outcome.is_success or outcome.status_code == 304):
                return call.read(outcome)
            retryable = not isinstance(outcome, httpx2.Response) or outcome.status_code in calls.RETRYABLE
            if delay is None or not retryable:
                break
            time.sleep(max(delay, calls.retry_after_s(outcome) if isinstance(outcome, httpx2.Response) else 0.0))
        if isinstance(outcome, httpx2.Response):
            raise RequestRefused.from_response(outcome)
        raise ServiceUnavailable(f"the service does not answer: {outcome}") from outcome

    def attempt(self, call: Call[Any]) -> httpx2.Response | httpx2.HTTPError:
        """Send a call once; return the response, or the error of the connection."""
        try:
            if call.to_store:
                return self.http.send(call.bare_request())
            return self.http.request(call.method, call.path, **call.options)
        except httpx2.HTTPError as error:
            return error
