"""The client for ordinary code. AsyncClient has the same methods."""

import math
import time
from collections.abc import Callable, Iterator
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


class Client:
    """Asks again, with pauses, while the service is away or busy.

    Every method raises Refused when the service says no, ServiceAway when it says nothing.
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
        """Queue an edit.

        Args:
            image: a photo to edit, where the spec names no source.
            movable: a PNG whose non-zero pixels may change.
            idempotency_key: lets a program that was killed submit again without a second job.
        """
        return self.send(calls.submit(spec, image, movable, idempotency_key))

    def get(self, job_id: UUID | str, *, artifacts: bool = False) -> Job:
        return self.send(calls.get(job_id, artifacts))

    def wait(self, job_id: UUID | str, *, seen: Callable[[Job], None] = lambda job: None, limit_s: float = 3600.0) -> Job:
        """The job once it has ended; `seen` is shown every change. Raises TookTooLong."""
        until, etag = time.monotonic() + limit_s, None
        while True:
            left = max(1, math.ceil(min(calls.WAIT_S, until - time.monotonic())))
            job, etag = self.send(calls.wait_for_change(job_id, etag, 0 if etag is None else left))  # the first look at once
            if job is not None:
                seen(job)
                if job.ended:
                    return job
            if time.monotonic() >= until:
                raise TookTooLong(f"job {job_id} has not ended after {limit_s:g} s")

    def events(self, job_id: UUID | str, *, after: int | None = None) -> Iterator[Event | Job]:
        """What happens to a job, and how it stands whenever that changes, until it has ended; a lost connection is made again.

        Args:
            after: seq of the last event known; the ones missed since come first.
        """
        pauses, lost = calls.pauses(), Exception("the service closes the connection")
        while True:
            try:
                for seq, told in self.stream(job_id, after):
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
            time.sleep(pause)

    def stream(self, job_id: UUID | str, after: int | None) -> Iterator[tuple[int, Event | Job]]:
        """One connection's worth of `events`, each with the seq to go on after."""
        headers = {"Accept": "text/event-stream"} | ({} if after is None else {"Last-Event-ID": str(after)})
        with self.http.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response:
            if not response.is_success:
                response.read()
                raise Refused.of(response)
            for told in httpx2.EventSource(response):
                kind: type[Event | Job] = Job if told.event == "snapshot" else Event
                yield int(told.id), kind.model_validate_json(told.data)

    def jobs(self, *, state: str | None = None, model: str | None = None, batch: UUID | None = None) -> Iterator[Job]:
        """The newest first."""
        cursor: str | None = None
        while True:
            page = self.send(calls.page(cursor, {"state": state, "model": model, "batch": batch}))
            yield from page.jobs
            if (cursor := page.next_cursor) is None:
                return

    def cancel(self, job_id: UUID | str) -> Job:
        return self.send(calls.act(job_id, "cancel"))

    def stop(self, job_id: UUID | str) -> Job:
        return self.send(calls.act(job_id, "stop"))

    def retry(self, job_id: UUID | str) -> Job:
        return self.send(calls.act(job_id, "retry"))

    def delete(self, job_id: UUID | str) -> None:
        self.send(calls.delete(job_id))

    def artifacts(self, job_id: UUID | str) -> Iterator[Artifact]:
        """Everything a job has stored, frames last."""
        yield from self.get(job_id, artifacts=True).artifacts or []
        cursor: str | None = ""
        while cursor is not None:
            page = self.send(calls.frames(job_id, cursor))
            yield from page.frames
            cursor = page.next_cursor

    def fetch(self, artifact: Artifact) -> bytes:
        return self.send(calls.fetch(artifact.url))

    def download(self, job_id: UUID | str, folder: Path) -> Iterator[Path]:
        """Every artifact as a file, one after the other; those that an earlier call fetched are not fetched again.

        Raises Damaged.
        """
        for artifact in self.artifacts(job_id):
            there = folders.is_there(folder, artifact)
            yield folders.path_of(folder, artifact) if there else folders.store(folder, artifact, self.fetch(artifact))

    def upload(self, data: bytes, *, kind: str | None = None) -> Upload:
        """Keep a photo or latent there, with kind="mask" a mask; one of more than 30 MB goes straight to the store."""
        if len(data) <= calls.DIRECT_BYTES:
            return self.send(calls.upload(data, kind))
        presigned = self.send(calls.presign(data, kind))
        self.send(calls.send_file(presigned, data))
        return self.send(calls.complete(presigned.id))

    def models(self) -> list[Model]:
        return self.send(calls.models()).models

    def usage(self) -> Usage:
        return self.send(calls.usage())

    def submit_batch(self, lines: bytes, *, idempotency_key: str | None = None) -> Batch:
        """Queue many edits: JSONL of {"custom_id": ..., "job": {...}}."""
        return self.send(calls.submit_batch(lines, idempotency_key or str(uuid4())))

    def batch(self, batch_id: UUID | str) -> Batch:
        return self.send(calls.batch(batch_id))

    def cancel_batch(self, batch_id: UUID | str) -> Batch:
        """What waits and runs ends; what is done stays."""
        return self.send(calls.cancel_batch(batch_id))

    def batch_lines(self, batch_id: UUID | str, what: str = "results") -> Iterator[BatchLine]:
        """How lines ended: `results` of those that succeeded, `errors` of all others that have ended."""
        told = self.send(calls.batch_lines(batch_id, what))
        return map(BatchLine.model_validate_json, told.splitlines())

    def send(self, call: Call[T]) -> T:
        """Raises Refused, ServiceAway."""
        for pause in (*calls.pauses(), None):
            answer = self.attempt(call)
            if isinstance(answer, httpx2.Response) and (answer.is_success or answer.status_code == 304):
                return call.read(answer)
            passing = not isinstance(answer, httpx2.Response) or answer.status_code in calls.PASSING
            if pause is None or not passing:
                break
            time.sleep(max(pause, calls.asked_to_rest_s(answer) if isinstance(answer, httpx2.Response) else 0.0))
        if isinstance(answer, httpx2.Response):
            raise Refused.of(answer)
        raise ServiceAway(f"the service does not answer: {answer}") from answer

    def attempt(self, call: Call[Any]) -> httpx2.Response | httpx2.HTTPError:
        try:
            if call.elsewhere:
                return self.http.send(call.alone())
            return self.http.request(call.method, call.path, **call.options)
        except httpx2.HTTPError as error:
            return error
