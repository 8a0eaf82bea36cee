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

QUEUE_SIZE = 64  # artifacts that may wait
ROWS_TOGETHER = 8  # recorded in one transaction
POLL_S = 0.5  # while the queue is full
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PendingResumeState(PendingArtifact):
    """An attempt's resume state: no artifact, but what the next attempt goes on from."""

    kept_names: Sequence[str]  # artifacts that the next attempt need not make again; all are stored before


class Uploader:
    """Stores what it is given and records each object with the job's attempt; waits for servers that are away."""

    def __init__(
        self, job: Job, storage: Storage, sessions: Sessions, *, stored: Sequence[StoredObject] = (), patience_s: float = 0.0,
        while_waiting: Callable[[], object] = lambda: None,
    ) -> None:  # fmt: skip
        """Upload nothing yet: entering the context starts the thread.

        Args:
            stored: artifacts of an earlier attempt that are this one's too.
            patience_s: how long to wait for a server.
            while_waiting: called every POLL_S while the queue is full; what it raises ends the waiting.
        """
        self.job = job
        self.storage = storage
        self.sessions = sessions
        self.patience_s = patience_s
        self.while_waiting = while_waiting
        self.stored: list[StoredObject] = list(stored)
        self.unrecorded: list[StoredObject] = []
        self.state_key: str | None = (job.resume_point or {}).get("key")  # of the last resume state saved
        self.states_given = 0
        self.saving_state = False  # whether a resume state is on its way
        self.pending: queue.Queue[PendingArtifact | None] = queue.Queue(maxsize=QUEUE_SIZE)
        self.error: Exception | None = None
        self.abandoned = False
        self.thread = threading.Thread(target=self.run, name=f"upload {job.id}", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.abandoned = error is not None  # what still waits is of no use
        self.pending.put(None)
        self.thread.join()

    def put(self, artifact: PendingArtifact) -> None:
        """Queue an artifact. Raises what went wrong with an earlier one."""
        self.check()
        while True:
            try:
                return self.pending.put(artifact, timeout=POLL_S)
            except queue.Full:
                self.check()
                self.while_waiting()

    def put_resume_state(self, encode: Callable[[], bytes], kept_names: Sequence[str]) -> None:
        """Queue a resume state: it is stored after everything given so far."""
        self.saving_state, self.states_given = True, self.states_given + 1
        self.put(PendingResumeState(f"checkpoint/{self.states_given:05d}.safetensors", encode, kept_names))

    def wait_until_stored(self) -> list[StoredObject]:
        """Wait until everything given so far is stored and recorded. Raises what went wrong."""
        self.pending.join()
        self.check()
        return list(self.stored)

    def check(self) -> None:
        """Raise what went wrong in the thread."""
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        """Store what comes, until None comes: the thread's work."""
        while (artifact := self.pending.get()) is not None:
            try:
                if self.error is None and not self.abandoned:
                    self.store(artifact)
            except Exception as error:  # handed to the thread that computes, which raises it
                self.error = error
            finally:
                self.pending.task_done()

    def store(self, artifact: PendingArtifact) -> None:
        """Encode, upload and record one artifact."""
        data = artifact.encode()
        key = artifact_key(self.job.tenant, self.job.id, self.job.attempt, artifact.name)
        retry_while_unavailable(lambda: self.storage.put(key, data, artifact.media_type), self.patience_s, lambda: self.abandoned)
        if isinstance(artifact, PendingResumeState):
            self.record_resume_point(key, artifact)
            return
        sha256 = hashlib.sha256(data).hexdigest()
        stored = StoredObject(name=artifact.name, key=key, media_type=artifact.media_type, size_bytes=len(data), sha256=sha256)
        self.stored.append(stored)
        self.unrecorded.append(stored)
        if len(self.unrecorded) >= ROWS_TOGETHER or self.pending.empty():
            self.record_artifacts()

    def record_artifacts(self) -> None:
        if self.unrecorded:
            self.write(lambda session: attempts.add_artifacts(session, self.job.id, self.job.attempt, self.unrecorded))
            self.unrecorded.clear()

    def record_resume_point(self, key: str, state: PendingResumeState) -> None:
        """Let the job's row name a stored resume state, and delete the one before."""
        self.record_artifacts()
        point = ResumePoint(attempt=self.job.attempt, key=key, names=list(state.kept_names))
        self.write(lambda session: attempts.save_resume_point(session, self.job.id, self.job.attempt, point))
        before, self.state_key, self.saving_state = self.state_key, key, False
        if before not in (None, key):
            try:
                self.storage.remove([str(before)])
            except StorageUnavailable as error:
                logger.warning("job %s: %s stays until the job is tidied: %s", self.job.id, before, error)

    def write(self, action: Callable[[Session], None]) -> None:
        """Run an action in a transaction of its own; wait for a database that is away."""

        def transaction() -> None:
            with self.sessions.begin() as session:
                action(session)

        retry_while_unavailable(transaction, self.patience_s, lambda: self.abandoned)
