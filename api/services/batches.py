"""Submitting batches: checking and storing the jobs of a JSONL file. No transaction is open while lines are checked."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Annotated, Any
from uuid import uuid4

from fastapi import Depends
from sqlalchemy.exc import OperationalError, TimeoutError
from sqlalchemy.orm import Session

from api.accepted import Accepted
from api.auth import Submitter
from api.dependencies import ManifestFileDep, QueueQuotaDep, SessionsDep, StorageDep, UnitOfWorkDep
from api.schemas.batches import BatchView
from api.services.batch_inputs import BatchInputs
from api.unit_of_work import UnitOfWork
from jobs.cancellation import check_canceled
from jobs.database import Sessions
from jobs.models.manifest import ManifestFile
from jobs.queue import batches, idempotency_holds
from jobs.queue.batch_spool import BatchSpool
from jobs.queue.batches import BatchReading
from jobs.queue.idempotency_holds import KeyHold
from jobs.storage.objects import Storage
from jobs.tenants.quotas import QueueQuota

MOST_WOKEN = 64  # workers of a pool; each that ends a job wakes another while jobs wait


@dataclass(frozen=True)
class BatchService:
    """The batches of one tenant in one request."""

    tenant: str
    unit_of_work: UnitOfWork  # for what follows a batch that is stored
    sessions: Sessions
    storage: Storage
    manifest_file: ManifestFile
    queue_quota: QueueQuota

    def submit(self, file: IO[bytes], fingerprint: str, idempotency_key: str | None) -> Accepted:
        """Queue the jobs of a JSONL file, unless its idempotency key was seen before.

        Args:
            fingerprint: the sha256 of the file.

        Raises:
            InvalidJob, KeyReused, KeyInUse, QuotaExceeded, StorageUnavailable, DecoderBusy, Canceled.
            UploadNotFound, JobNotFound: an input was deleted while the batch was checked.
        """
        held = self.begin(fingerprint, idempotency_key)
        if isinstance(held, dict):
            return accepted(held, replayed=True)
        holder = HoldKeeper(self.sessions, held)
        try:
            inputs = BatchInputs(self.tenant, self.sessions, self.storage)
            with BatchSpool(uuid4()) as spool:
                reading = self.check(file, spool, inputs, holder)
                return accepted(self.store(reading, spool, inputs, holder))
        except BaseException:
            holder.release()
            raise

    def begin(self, fingerprint: str, idempotency_key: str | None) -> KeyHold | dict[str, Any] | None:
        """Hold the key, and refuse a tenant whose queue is full before any work. Return the earlier answer if there is one."""
        with self.sessions.begin() as session:
            if idempotency_key is not None:
                held = idempotency_holds.hold_key(session, self.tenant, idempotency_key, fingerprint)
                if isinstance(held, dict):
                    return held
            self.queue_quota.check(session, self.tenant, more=1)
            return None if idempotency_key is None else held

    def check(self, file: IO[bytes], spool: BatchSpool, inputs: BatchInputs, holder: "HoldKeeper") -> BatchReading:
        """Spool what the lines become."""
        manifest, reading = self.manifest_file.current(), BatchReading()
        for line in read_lines(file):
            check_canceled()
            holder.renew_in_time()
            batches.check_line(line, reading, spool, self.tenant, manifest, inputs)
            time.sleep(0)  # lets the threads of other requests go first
        return reading

    def store(self, reading: BatchReading, spool: BatchSpool, inputs: BatchInputs, holder: "HoldKeeper") -> dict[str, Any]:
        """Store the batch whole or not at all, and return the answer."""
        holder.renew()
        with self.sessions.begin() as session:
            inputs.lock(session)
            batch = batches.add(session, self.tenant, reading, spool)
            self.queue_quota.check_exactly(session, self.tenant, reading.jobs)
            answer = BatchView.of(batches.summarize(session, batch)).model_dump(mode="json")
            holder.remember(session, answer)
        for pool, count in reading.pools.items():
            self.unit_of_work.pools_to_wake += [pool] * min(count, MOST_WOKEN)
        self.unit_of_work.follow_up()
        return answer


class HoldKeeper:
    """Keeps the idempotency key of a request while it is answered; without a key there is nothing to keep."""

    def __init__(self, sessions: Sessions, hold: KeyHold | None) -> None:
        self.sessions = sessions
        self.hold = hold
        self.renewed = time.monotonic()

    def renew_in_time(self) -> None:
        """Renew the hold when it is time to. Raises KeyInUse."""
        if self.hold is not None and time.monotonic() - self.renewed > idempotency_holds.RENEW_S:
            self.renew()

    def renew(self) -> None:
        """Renew the hold. Raises KeyInUse."""
        if self.hold is not None:
            with self.sessions.begin() as session:
                self.hold = idempotency_holds.renew(session, self.hold)
            self.renewed = time.monotonic()

    def remember(self, session: Session, answer: dict[str, Any]) -> None:
        """Store the answer with the batch. Raises KeyInUse."""
        if self.hold is not None:
            idempotency_holds.remember(session, self.hold, answer)

    def release(self) -> None:
        """Give the key back; where the database is away, it runs out."""
        if self.hold is not None:
            with suppress(OperationalError, TimeoutError), self.sessions.begin() as session:
                idempotency_holds.release(session, self.hold)


def accepted(answer: dict[str, Any], *, replayed: bool = False) -> Accepted:
    return Accepted(answer, f"/v1/batches/{answer['id']}", replayed)


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines, of a long one only as much as shows that it is too long: the rest is skipped."""
    while line := file.readline(batches.MAX_LINE_BYTES + 1):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(batches.MAX_LINE_BYTES + 1)):
            pass


async def batch_service(
    principal: Submitter, unit_of_work: UnitOfWorkDep, sessions: SessionsDep, storage: StorageDep,
    manifest_file: ManifestFileDep, queue_quota: QueueQuotaDep,
) -> BatchService:  # fmt: skip
    return BatchService(principal.tenant, unit_of_work, sessions, storage, manifest_file, queue_quota)


BatchServiceDep = Annotated[BatchService, Depends(batch_service)]
