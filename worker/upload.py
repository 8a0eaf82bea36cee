"""Artifacts on their way to the store, in a thread of their own: the drag waits only when the store is far behind."""

import hashlib
import queue
import threading
from types import TracebackType
from typing import Self

from jobs.database import Sessions
from jobs.models import Job
from jobs.repository import JobRepository, StoredObject
from jobs.storage import Storage, artifact_key
from worker.recording import Product

BEHIND = 64  # artifacts that may wait
TOGETHER = 8  # rows recorded in one transaction


class Uploader:
    """Stores what it is given and records each object with the job's attempt."""

    def __init__(self, job: Job, storage: Storage, sessions: Sessions) -> None:
        self.job = job
        self.storage = storage
        self.sessions = sessions
        self.stored: list[StoredObject] = []
        self.unrecorded: list[StoredObject] = []
        self.waiting: queue.Queue[Product | None] = queue.Queue(maxsize=BEHIND)
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

    def put(self, product: Product) -> None:
        """Raises what went wrong with an earlier artifact."""
        self.waiting.put(product)
        self.check()

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

    def store(self, product: Product) -> None:
        data = product.encode()
        key = artifact_key(self.job.tenant, self.job.id, self.job.attempt, product.name)
        self.storage.put(key, data, product.media_type)
        sha256 = hashlib.sha256(data).hexdigest()
        stored = StoredObject(name=product.name, key=key, media_type=product.media_type, size_bytes=len(data), sha256=sha256)
        self.stored.append(stored)
        self.unrecorded.append(stored)
        if len(self.unrecorded) >= TOGETHER or self.waiting.empty():
            self.record()

    def record(self) -> None:
        with self.sessions.begin() as session:
            JobRepository(session).add_artifacts(self.job.id, self.job.attempt, self.unrecorded)
        self.unrecorded.clear()
