"""The client for asyncio. Client has the same methods, documented with their arguments and errors."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
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


class AsyncClient:
    """A client like Client, whose methods are coroutines or asynchronous iterators and take and raise the same."""

    def __init__(self, url: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx2.AsyncClient(base_url=url, headers=headers, timeout=calls.TIMEOUT_S)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.http.aclose()

    async def submit(
        self, spec: Spec, *, image: bytes | None = None, movable: bytes | None = None, idempotency_key: str | None = None
    ) -> Job:
        """Queue an edit and return its job."""
        return await self.send(calls.submit(spec, image, movable, idempotency_key))

    async def get(self, job_id: UUID | str, *, artifacts: bool = False) -> Job:
        """Return a job, with the list of its artifacts if asked for."""
        return await self.send(calls.get(job_id, artifacts))

    async def wait(
        self, job_id: UUID | str, *, on_change: Callable[[Job], None] = lambda job: None, timeout_s: float = 3600.0
    ) -> Job:
        """Wait until a job has ended and return it."""
        deadline, etag = time.monotonic() + timeout_s, None
        while True:
            left = max(1, math.ceil(min(calls.LONG_POLL_S, deadline - time.monotonic())))
            job, etag = await self.send(
                calls.wait_for_change(job_id, etag, 0 if etag is None else left)
            )  # the first look at once
            if job is not None:
                on_change(job)
                if job.ended:
                    return job
            if time.monotonic() >= deadline:
                raise WaitTimeout(f"job {job_id} has not ended after {timeout_s:g} s")

    async def events(self, job_id: UUID | str, *, after: int | None = None) -> AsyncIterator[Event | Job]:
        """Yield the events of a job, and the job whenever it has changed, until it has ended; reconnect on a lost connection."""
        delays, lost = calls.retry_delays(), Exception("the service closes the connection")
        while True:
            try:
                async for seq, message in self.stream(job_id, after):
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
            await asyncio.sleep(delay)

    async def stream(self, job_id: UUID | str, after: int | None) -> AsyncIterator[tuple[int, Event | Job]]:
        """Yield what `events` yields from one connection, each with the seq after which to resume."""
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": str(after)})
        async with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            if not response.is_success:
                await response.aread()
                raise RequestRefused.from_response(response)
            async for message in httpx2.EventSource(response):
                kind: type[Event | Job] = Job if message.event == "snapshot" else Event
                yield int(message.id), kind.model_validate_json(message.data)

    async def jobs(
        self, *, state: str | None = None, model: str | None = None, batch: UUID | None = None
    ) -> AsyncIterator[JobSummary]:
        """Yield jobs, the newest first, without their specs."""
        cursor: str | None = None
        while True:
            page = await self.send(calls.list_jobs(cursor, {"state": state, "model": model, "batch": batch}))
            for job in page.jobs:
                yield job
            if (cursor := page.next_cursor) is None:
                return

    async def cancel(self, job_id: UUID | str) -> Job:
        """Cancel a job; it has no result."""
        return await self.send(calls.act_on_job(job_id, "cancel"))

    async def stop(self, job_id: UUID | str) -> Job:
        """End a running drag and keep its picture as the result."""
        return await self.send(calls.act_on_job(job_id, "stop"))

    async def retry(self, job_id: UUID | str) -> Job:
        """Queue an ended job again and return the new job."""
        return await self.send(calls.act_on_job(job_id, "retry"))

    async def delete(self, job_id: UUID | str) -> None:
        """Delete an ended job and everything that it stored."""
        await self.send(calls.delete_job(job_id))

    async def artifacts(self, job_id: UUID | str) -> AsyncIterator[Artifact]:
        """Yield everything that a job has stored, frames last."""
        for artifact in (await self.get(job_id, artifacts=True)).artifacts or []:
            yield artifact
        cursor: str | None = ""
        while cursor is not None:
            page = await self.send(calls.list_frames(job_id, cursor))
            for frame in page.frames:
                yield frame
            cursor = page.next_cursor

    async def fetch(self, artifact: Artifact) -> bytes:
        """Return the bytes of an artifact."""
        return await self.send(calls.fetch(artifact.url))

    async def download(self, job_id: UUID | str, folder: Path) -> AsyncIterator[Path]:
        """Write every artifact of a job into a folder and yield each path; skip what an earlier call has downloaded."""
        async for artifact in self.artifacts(job_id):
            if not artifact_files.is_downloaded(folder, artifact):
                artifact_files.write_artifact(folder, artifact, await self.fetch(artifact))
            yield artifact_files.artifact_path(folder, artifact)

    async def upload(self, data: bytes, *, kind: str | None = None) -> Upload:
        """Upload a photo or a latent, or with kind="mask" a mask; a file of more than 30 MB goes straight to the store."""
        if len(data) <= calls.MAX_DIRECT_UPLOAD_BYTES:
            return await self.send(calls.upload(data, kind))
        presigned = await self.send(calls.presign(data, kind))
        await self.send(calls.send_file(presigned, data))
        return await self.send(calls.complete(presigned.id))

    async def models(self) -> list[Model]:
        """Return the models that jobs can name."""
        return (await self.send(calls.models())).models

    async def usage(self) -> Usage:
        """Return what the tenant has at the moment, and the most it may have."""
        return await self.send(calls.usage())

    async def submit_batch(self, lines: bytes, *, idempotency_key: str | None = None) -> Batch:
        """Queue many edits, given as JSONL of {"custom_id": ..., "job": {...}}."""
        return await self.send(calls.submit_batch(lines, idempotency_key or str(uuid4())))

    async def batch(self, batch_id: UUID | str) -> Batch:
        """Return a batch."""
        return await self.send(calls.batch(batch_id))

    async def cancel_batch(self, batch_id: UUID | str) -> Batch:
        """Cancel the jobs of a batch that have not ended; keep the results of the others."""
        return await self.send(calls.cancel_batch(batch_id))

    async def batch_lines(self, batch_id: UUID | str, which: str = "results") -> AsyncIterator[BatchLine]:
        """Yield the lines of a batch that succeeded, or with which="errors" all others that have ended."""
        for line in (await self.send(calls.batch_lines(batch_id, which))).splitlines():
            yield BatchLine.model_validate_json(line)

    async def send(self, call: Call[T]) -> T:
        """Send a call, again with growing delays while the service is unavailable, and return what its response holds."""
        for delay in (*calls.retry_delays(), None):
            outcome = await self.attempt(call)
            if isinstance(outcome, httpx2.Response) and (outcome.is_success or outcome.status_code == 304):
                return call.read(outcome)
            retryable = not isinstance(outcome, httpx2.Response) or outcome.status_code in calls.RETRYABLE
            if delay is None or not retryable:
                break
            await asyncio.sleep(max(delay, calls.retry_after_s(outcome) if isinstance(outcome, httpx2.Response) else 0.0))
        if isinstance(outcome, httpx2.Response):
            raise RequestRefused.from_response(outcome)
        raise ServiceUnavailable(f"the service does not answer: {outcome}") from outcome

    async def attempt(self, call: Call[Any]) -> httpx2.Response | httpx2.HTTPError:
        """Send a call once; return the response, or the error of the connection."""
        try:
            if call.to_store:
                return await self.http.send(call.bare_request())
            return await self.http.request(call.method, call.path, **call.options)
        except httpx2.HTTPError as error:
            return error
