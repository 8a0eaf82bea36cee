"""The client for asyncio. Client has the same methods, and says more about them."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import httpx2

from dragqueue_client import calls, folders
from dragqueue_client.calls import Call, Spec
from dragqueue_client.errors import Refused, ServiceAway, TookTooLong
from dragqueue_client.models import Artifact, Batch, BatchLine, Event, Job, Model, Upload, Usage

T = TypeVar("T")


class AsyncClient:
    """Asks again, with pauses, while the service is away or busy. See Client for what each method takes and raises."""

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
        """Queue an edit.

        Args:
            image: a photo to edit, where the spec names no source.
            movable: a PNG whose non-zero pixels may change.
            idempotency_key: lets a program that was killed submit again without a second job.
        """
        return await self.send(calls.submit(spec, image, movable, idempotency_key))

    async def get(self, job_id: UUID | str, *, artifacts: bool = False) -> Job:
        return await self.send(calls.get(job_id, artifacts))

    async def wait(self, job_id: UUID | str, *, seen: Callable[[Job], None] = lambda job: None, limit_s: float = 3600.0) -> Job:
        until, etag = time.monotonic() + limit_s, None
        while True:
            left = max(1, math.ceil(min(calls.WAIT_S, until - time.monotonic())))
            job, etag = await self.send(
                calls.wait_for_change(job_id, etag, 0 if etag is None else left)
            )  # the first look at once
            if job is not None:
                seen(job)
                if job.ended:
                    return job
            if time.monotonic() >= until:
                raise TookTooLong(f"job {job_id} has not ended after {limit_s:g} s")

    async def events(self, job_id: UUID | str, *, after: int | None = None) -> AsyncIterator[Event | Job]:
        pauses, lost = calls.pauses(), Exception("the service closes the connection")
        while True:
            try:
                async for seq, told in self.stream(job_id, after):
                    pauses, after = calls.pauses(), seq
                    yield told
                    if isinstance(told, Job) and told.ended:
                        return
            except (httpx2.TransportError, Refused) as error:
                if isinstance(error, Refused) and error.status not in calls.PASSING:
                    raise
                lost = error
            if (pause := next(pauses, None)) is None:
                raise ServiceAway(f"the events of job {job_id} break off again and again: {lost}")
            await asyncio.sleep(pause)

    async def stream(self, job_id: UUID | str, after: int | None) -> AsyncIterator[tuple[int, Event | Job]]:
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": str(after)})
        async with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            if not response.is_success:
                await response.aread()
                raise Refused.of(response)
            async for told in httpx2.EventSource(response):
                kind: type[Event | Job] = Job if told.event == "snapshot" else Event
                yield int(told.id), kind.model_validate_json(told.data)

    async def jobs(self, *, state: str | None = None, model: str | None = None, batch: UUID | None = None) -> AsyncIterator[Job]:
        cursor: str | None = None
        while True:
            page = await self.send(calls.page(cursor, {"state": state, "model": model, "batch": batch}))
            for job in page.jobs:
                yield job
            if (cursor := page.next_cursor) is None:
                return

    async def cancel(self, job_id: UUID | str) -> Job:
        return await self.send(calls.act(job_id, "cancel"))

    async def stop(self, job_id: UUID | str) -> Job:
        return await self.send(calls.act(job_id, "stop"))

    async def retry(self, job_id: UUID | str) -> Job:
        return await self.send(calls.act(job_id, "retry"))

    async def delete(self, job_id: UUID | str) -> None:
        await self.send(calls.delete(job_id))

    async def artifacts(self, job_id: UUID | str) -> AsyncIterator[Artifact]:
        for artifact in (await self.get(job_id, artifacts=True)).artifacts or []:
            yield artifact
        cursor: str | None = ""
        while cursor is not None:
            page = await self.send(calls.frames(job_id, cursor))
            for frame in page.frames:
                yield frame
            cursor = page.next_cursor

    async def fetch(self, artifact: Artifact) -> bytes:
        return await self.send(calls.fetch(artifact.url))

    async def download(self, job_id: UUID | str, folder: Path) -> AsyncIterator[Path]:
        async for artifact in self.artifacts(job_id):
            there = folders.is_there(folder, artifact)
            yield folders.path_of(folder, artifact) if there else folders.store(folder, artifact, await self.fetch(artifact))

    async def upload(self, data: bytes, *, kind: str | None = None) -> Upload:
        if len(data) <= calls.DIRECT_BYTES:
            return await self.send(calls.upload(data, kind))
        presigned = await self.send(calls.presign(data, kind))
        await self.send(calls.send_file(presigned, data))
        return await self.send(calls.complete(presigned.id))

    async def models(self) -> list[Model]:
        return (await self.send(calls.models())).models

    async def usage(self) -> Usage:
        return await self.send(calls.usage())

    async def submit_batch(self, lines: bytes, *, idempotency_key: str | None = None) -> Batch:
        return await self.send(calls.submit_batch(lines, idempotency_key or str(uuid4())))

    async def batch(self, batch_id: UUID | str) -> Batch:
        return await self.send(calls.batch(batch_id))

    async def cancel_batch(self, batch_id: UUID | str) -> Batch:
        return await self.send(calls.cancel_batch(batch_id))

    async def batch_lines(self, batch_id: UUID | str, what: str = "results") -> AsyncIterator[BatchLine]:
        for line in (await self.send(calls.batch_lines(batch_id, what))).splitlines():
            yield BatchLine.model_validate_json(line)

    async def send(self, call: Call[T]) -> T:
        for pause in (*calls.pauses(), None):
            answer = await self.attempt(call)
            if isinstance(answer, httpx2.Response) and (answer.is_success or answer.status_code == 304):
                return call.read(answer)
            passing = not isinstance(answer, httpx2.Response) or answer.status_code in calls.PASSING
            if pause is None or not passing:
                break
            await asyncio.sleep(max(pause, calls.asked_to_rest_s(answer) if isinstance(answer, httpx2.Response) else 0.0))
        if isinstance(answer, httpx2.Response):
            raise Refused.of(answer)
        raise ServiceAway(f"the service does not answer: {answer}") from answer

    async def attempt(self, call: Call[Any]) -> httpx2.Response | httpx2.HTTPError:
        try:
            if call.elsewhere:
                return await self.http.send(call.alone())
            return await self.http.request(call.method, call.path, **call.options)
        except httpx2.HTTPError as error:
            return error
