"""Submitting batches: storing the jobs of a JSONL file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Annotated, Any

from fastapi import Depends

from api.accepted import Accepted
from api.auth import Submitter
from api.dependencies import ManifestFileDep, QueueQuotaDep, StorageDep, UnitOfWorkDep
from api.schemas.batches import BatchView
from api.services.inputs import TenantInputs
from api.unit_of_work import UnitOfWork
from jobs.models.manifest import ManifestFile
from jobs.queue import batches, idempotency
from jobs.storage.objects import Storage
from jobs.tenants.quotas import QueueQuota

MOST_WOKEN = 64  # workers of a pool; each that ends a job wakes another while jobs wait


@dataclass(frozen=True)
class BatchService:
    """The batches of one tenant in one request."""

    tenant: str
    unit_of_work: UnitOfWork
    storage: Storage
    manifest_file: ManifestFile
    queue_quota: QueueQuota

    def submit(self, file: IO[bytes], fingerprint: str, idempotency_key: str | None) -> Accepted:
        """Queue the jobs of a JSONL file, unless its idempotency key was seen before.

        Args:
            fingerprint: the sha256 of the file.

        Raises:
            InvalidJob, KeyReused, KeyInUse, QuotaExceeded, StorageUnavailable.
        """
        session = self.unit_of_work.session
        earlier = idempotency.reserve_key(session, self.tenant, idempotency_key, fingerprint)
        if earlier is not None:
            return accepted(earlier, replayed=True)
        file.seek(0)
        inputs = TenantInputs(self.tenant, self.unit_of_work, self.storage)
        batch, reading = batches.add(session, self.tenant, read_lines(file), self.manifest_file.current(), inputs)
        self.queue_quota.check_exactly(session, self.tenant)  # the jobs are in the queue already
        for pool, count in reading.pools.items():
            self.unit_of_work.pools_to_wake += [pool] * min(count, MOST_WOKEN)
        answer = BatchView.of(batches.summarize(session, batch)).model_dump(mode="json")
        idempotency.remember(session, self.tenant, idempotency_key, answer)
        return accepted(answer)


def accepted(answer: dict[str, Any], *, replayed: bool = False) -> Accepted:
    return Accepted(answer, f"/v1/batches/{answer['id']}", replayed)


def read_lines(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines, of a long one only as much as shows that it is too long: the rest is skipped."""
    while line := file.readline(batches.MAX_LINE_BYTES + 1):
        yield line
        while not line.endswith(b"\n") and (line := file.readline(batches.MAX_LINE_BYTES + 1)):
            pass


async def batch_service(
    principal: Submitter, unit_of_work: UnitOfWorkDep, storage: StorageDep, manifest_file: ManifestFileDep,
    queue_quota: QueueQuotaDep,
) -> BatchService:  # fmt: skip
    return BatchService(principal.tenant, unit_of_work, storage, manifest_file, queue_quota)


BatchServiceDep = Annotated[BatchService, Depends(batch_service)]
