"""Submitting jobs: checking a posted job, queueing it, and doing an ended one again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID, uuid4

from fastapi import Depends

from api.accepted import Accepted
from api.auth import Submitter
from api.dependencies import ManifestFileDep, QueueQuotaDep, StorageDep, UnitOfWorkDep
from api.posted_jobs import ParsedJob, PostedJob, parse_posted_job
from api.schemas.jobs import JobView, Verdict
from api.services.inputs import TenantInputs
from api.services.uploads import UploadService, UploadServiceDep
from api.unit_of_work import UnitOfWork
from jobs.errors import IdTaken, JobActive
from jobs.models.manifest import ManifestFile
from jobs.queue import idempotency, jobs
from jobs.queue.estimates import estimate_position, estimate_run_time
from jobs.spec.job_spec import JobSpec
from jobs.spec.validation import Submission, check_spec, check_submission
from jobs.states import JobState
from jobs.storage.decoding import Decoded
from jobs.storage.objects import Storage
from jobs.tables import Job
from jobs.tenants.quotas import QueueQuota


@dataclass(frozen=True)
class JobService:
    """The submissions of one tenant in one request."""

    tenant: str
    unit_of_work: UnitOfWork
    storage: Storage
    manifest_file: ManifestFile  # read in a route's thread: its disk may be slow
    queue_quota: QueueQuota
    uploads: UploadService

    def submit(self, posted: PostedJob, idempotency_key: str | None) -> Accepted:
        """Queue a posted job, unless its idempotency key was seen before.

        Raises:
            InvalidJob, DecoderBusy, KeyReused, KeyInUse, QuotaExceeded, StorageUnavailable.
            UploadNotFound, JobNotFound, ParentUnusable: an input is missing, or cannot be built on.
        """
        session = self.unit_of_work.session
        fingerprint = "" if idempotency_key is None else posted.fingerprint()
        earlier = idempotency.find_answer(session, self.tenant, idempotency_key, fingerprint) if posted.has_files else None
        if earlier is None:
            session.rollback()  # no transaction is open while files are decoded
            parsed = parse_posted_job(posted, self.tenant)
            earlier = idempotency.reserve_key(session, self.tenant, idempotency_key, fingerprint)
        if earlier is not None:
            return accepted(earlier, replayed=True)
        job = self.enqueue(self.check(parsed), parsed.files)
        answer = JobView.of(job).model_dump(mode="json")
        idempotency.remember(session, self.tenant, idempotency_key, answer)
        return accepted(answer)

    def submit_with_id(self, posted: PostedJob, client_id: UUID) -> Job:
        """Queue a posted job under the client's id, or return the same job queued before.

        Raises:
            IdTaken: the id is another job's; and what `submit` raises.
        """
        parsed = parse_posted_job(posted, self.tenant)
        job = jobs.reserve_id(self.unit_of_work.session, self.tenant, client_id)
        if job is None:
            return self.enqueue(self.check(parsed), parsed.files, client_id)
        if JobSpec.model_validate(job.spec) != parsed.resolved_spec(self.manifest_file.current()):
            raise IdTaken(f"the id {client_id} is another job's: choose a new one")
        return job

    def retry(self, job_id: UUID, idempotency_key: str | None) -> Accepted:
        """Queue the edit of an ended job as a new job, unless the idempotency key was seen before.

        Raises:
            JobNotFound, JobActive; and what `submit` raises.
        """
        session = self.unit_of_work.session
        earlier = idempotency.reserve_key(session, self.tenant, idempotency_key, f"retry {job_id}")
        if earlier is not None:
            return accepted(earlier, replayed=True)
        ended = jobs.get(session, self.tenant, job_id)
        if not JobState(ended.state).terminal:
            raise JobActive(f"job {ended.public_id} is {ended.state}: it may still succeed")
        inputs = TenantInputs(self.tenant, self.unit_of_work, self.storage)
        webhooks = inputs.known_webhooks([UUID(webhook) for webhook in ended.spec.get("webhooks", [])])  # others were deleted
        document = ended.spec | {"start_before": None, "webhooks": [str(webhook) for webhook in webhooks]}
        job = self.enqueue(check_submission(document, self.manifest_file.current(), inputs=inputs))
        answer = JobView.of(job).model_dump(mode="json")
        idempotency.remember(session, self.tenant, idempotency_key, answer)
        return accepted(answer)

    def validate(self, posted: PostedJob) -> Verdict:
        """Check a posted job as `submit` would, and estimate when it would run."""
        session = self.unit_of_work.session
        submission = self.check(parse_posted_job(posted, self.tenant))
        self.queue_quota.check(session, self.tenant, more=1)
        spec = submission.spec
        job = Job(tenant=self.tenant, pool=submission.pool, model=spec.model, priority=spec.priority)
        return Verdict.of(spec, estimate_run_time(session, spec.model), estimate_position(session, job).starts_in_s)

    def check(self, parsed: ParsedJob) -> Submission:
        """Check that a parsed job can run; nothing is stored yet."""
        inputs = TenantInputs(self.tenant, self.unit_of_work, self.storage, parsed.photo)
        return check_spec(parsed.spec, self.manifest_file.current(), parsed.mask, inputs)

    def enqueue(self, submission: Submission, files: Sequence[Decoded] = (), client_id: UUID | None = None) -> Job:
        """Store a job that passed its checks, with the files that came along. Raises QuotaExceeded, StorageUnavailable."""
        if files:
            self.queue_quota.check(self.unit_of_work.session, self.tenant, more=1)  # before anything is stored
        for file in files:
            self.uploads.keep(file)
        self.queue_quota.reserve(self.unit_of_work.session, self.tenant)  # holds the tenant's lock from here on
        job = jobs.add(self.unit_of_work.session, uuid4(), self.tenant, submission, client_id)
        self.unit_of_work.pools_to_wake.append(job.pool)
        return job


def accepted(answer: dict[str, Any], *, replayed: bool = False) -> Accepted:
    return Accepted(answer, answer["links"]["self"], replayed)


async def job_service(
    principal: Submitter, unit_of_work: UnitOfWorkDep, storage: StorageDep, manifest_file: ManifestFileDep,
    queue_quota: QueueQuotaDep, uploads: UploadServiceDep,
) -> JobService:  # fmt: skip
    return JobService(principal.tenant, unit_of_work, storage, manifest_file, queue_quota, uploads)


JobServiceDep = Annotated[JobService, Depends(job_service)]
