"""Artifacts on their way to the store, in a thread of their own: the drag waits only when the store is far behind."""

import hashlib
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy.orm import Session

from jobs.database import Sessions
from jobs.errors import StorageUnavailable
from jobs.queue import attempts
from jobs.queue.attempts import ResumePoint
from jobs.storage.artifacts import StoredObject
from jobs.storage.objects import Storage, artifact_key
from jobs.tables import Job
from worker.edit.artifacts import PendingArtifact
from worker.retry import retry_while_unavailable

BEHIND = 64  # artifacts that may wait
TOGETHER = 8  # rows recorded in one transaction
LOOK_S = 0.5  # between two looks of who waits for a place in the queue
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingResumeState(PendingArtifact):
    """The attempt's checkpoint: no artifact, but what the next attempt goes on from."""

    names: Sequence[str]  # artifacts that the next attempt need not make again; all are stored before


class Uploader:
    """Stores what it is given and records each object with the job's attempt; waits for servers that are away."""

    def __init__(
        self, job: Job, storage: Storage, sessions: Sessions, *, patience_s: float = 0.0,
        while_waiting: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """Args:
        patience_s: how long it waits for a server.
        while_waiting: called every LOOK_S by who waits for a place in the queue; what it raises ends the waiting.
        """
        self.job = job
        self.storage = storage
        self.sessions = sessions
        self.patience_s = patience_s
        self.while_waiting = while_waiting
        self.stored: list[StoredObject] = []
        self.unrecorded: list[StoredObject] = []
        self.checkpoint_key: str | None = (job.checkpoint or {}).get("key")  # the last one saved
        self.checkpoints = 0  # given so far
        self.saving = False  # whether a checkpoint is on its way
        self.waiting: queue.Queue[PendingArtifact | None] = queue.Queue(maxsize=BEHIND)
        self.error: Exception | None = None
        self.abandoned = False
        self.thread = threading.Thread(target=self.run, name=f"upload {job.id}", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abandoned = error is not None  # what still waits is of no use
        self.waiting.put(None)
        self.thread.join()

    def put(self, product: PendingArtifact) -> None:
        """Raises what went wrong with an earlier artifact."""
        self.check()
        while True:
            try:
                return self.waiting.put(product, timeout=LOOK_S)
            except queue.Full:
                self.check()
                self.while_waiting()

    def save(self, encode: Callable[[], bytes], names: Sequence[str]) -> None:
        """Store a checkpoint after everything given so far."""
        self.saving, self.checkpoints = True, self.checkpoints + 1
        self.put(PendingResumeState(f"checkpoint/{self.checkpoints:05d}.safetensors", encode, names))

    def drain(self) -> list[StoredObject]:
        """Wait until everything given so far is stored and recorded. Raises what went wrong."""
        self.waiting.join()
        self.check()
        return list(self.stored)

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        while (product := self.waiting.get()) is not None:
            try:
                if self.error is None and not self.abandoned:
                    self.store(product)
            except Exception as error:  # handed to the thread that computes, which raises it
                self.error = error
            finally:
                self.waiting.task_done()

    def store(self, product: PendingArtifact) -> None:
        data = product.encode()
        key = artifact_key(self.job.tenant, self.job.id, self.job.attempt, product.name)
        retry_while_unavailable(lambda: self.storage.put(key, data, product.media_type), self.patience_s, lambda: self.abandoned)
        if isinstance(product, PendingResumeState):
            self.point_at(key, product)
            return
        sha256 = hashlib.sha256(data).hexdigest()
        stored = StoredObject(name=product.name, key=key, media_type=product.media_type, size_bytes=len(data), sha256=sha256)
        self.stored.append(stored)
        self.unrecorded.append(stored)
        if len(self.unrecorded) >= TOGETHER or self.waiting.empty():
            self.record()

    def record(self) -> None:
        if self.unrecorded:
            self.write(lambda session: attempts.add_artifacts(session, self.job.id, self.job.attempt, self.unrecorded))
            self.unrecorded.clear()

    def point_at(self, key: str, product: PendingResumeState) -> None:
        """Let the job's row name a stored checkpoint, and delete the one before."""
        self.record()
        checkpoint = ResumePoint(attempt=self.job.attempt, key=key, names=list(product.names))
        self.write(lambda session: attempts.save_resume_point(session, self.job.id, self.job.attempt, checkpoint))
        before, self.checkpoint_key, self.saving = self.checkpoint_key, key, False
        if before not in (None, key):
            try:
                self.storage.remove([str(before)])
            except StorageUnavailable as error:
                logger.warning("job %s: %s stays until the job is tidied: %s", self.job.id, before, error)

    def write(self, action: Callable[[Session], None]) -> None:
        def transaction() -> None:
            with self.sessions.begin() as session:
                action(session)

        retry_while_unavailable(transaction, self.patience_s, lambda: self.abandoned)
