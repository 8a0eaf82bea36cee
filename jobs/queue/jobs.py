"""Jobs as their clients see them: submit, find, list, cancel, stop. Nothing here commits; all times are the database's."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Select, Text, cast, func, or_, select, update
from sqlalchemy.orm import Session, defer

from jobs.errors import JobNotFound
from jobs.queue.events import VERSION
from jobs.queue.state_updates import transition
from jobs.spec.validation import Submission
from jobs.states import JobState
from jobs.storage import artifacts
from jobs.tables import Artifact, Attempt, Job

T = TypeVar("T")
JOBS = Job.__table__
MAX_PAGE_BYTES = 10**6  # of specs in a page
ROWS_AT_ONCE = 1  # that a page with specs reads: one may be large
CHUNK_ROWS = 2_000  # locked by one statement
NOT_RETURNED = ("spec", "checkpoint")  # known to the caller; empty for a new job
# Without the ORM a submission costs half as much.
ADD = JOBS.insert().returning(*(column for column in JOBS.columns if column.name not in NOT_RETURNED))  # type: ignore[attr-defined]


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs a list holds; None is no condition."""

    state: JobState | None = None
    model: str | None = None
    batch: UUID | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        """Return the conditions on the rows."""
        wanted = ((Job.state, self.state), (Job.model, self.model), (Job.batch, self.batch))
        return [column == value for column, value in wanted if value is not None]


@dataclass(frozen=True, kw_only=True)
class Ancestry:
    """The stored results that a job goes on from."""

    latent_key: str
    changes_key: str | None  # of a tuned generator's tensors, where the chain began with a photo
    root_spec: dict[str, Any] | None  # of the chain's first job, while it is kept


def row_without_spec(job_id: UUID, tenant: str, submission: Submission, client_id: UUID | None = None) -> dict[str, Any]:
    """Return the row of a queued job but for its spec, which may be large."""
    spec, parent = submission.spec, submission.parent
    return {
        "id": job_id,
        "client_id": client_id,
        "tenant": tenant,
        "model": spec.model,
        "pool": submission.pool,
        "priority": spec.priority,
        "start_before": spec.start_before,
        "parent": None if parent is None else parent.id,
        "root": None if parent is None else parent.root or parent.id,
        "parent_client_id": None if parent is None else parent.client_id,
        "root_client_id": None if parent is None else parent.client_id if parent.root is None else parent.root_client_id,
    }


def add(session: Session, job_id: UUID, tenant: str, submission: Submission, client_id: UUID | None = None) -> Job:
    """Store a queued job; return a copy that no session knows.

    Args:
        client_id: the id that the client chose; the caller has reserved it.
    """
    spec = submission.spec.model_dump(mode="json")
    row = row_without_spec(job_id, tenant, submission, client_id) | {"spec": spec}
    stored = session.connection().execute(ADD, row).one()
    return Job(spec=spec, **stored._asdict())


def select_job(tenant: str, job_id: UUID) -> Select[Job]:
    """Select a tenant's job by the id that the client chose, or by its row's id."""
    return select(Job).where(Job.tenant == tenant, or_(Job.client_id == job_id, Job.id == job_id))


def get(session: Session, tenant: str, job_id: UUID, *, lock: bool = False) -> Job:
    """Return a tenant's job. Raises JobNotFound, also for other tenants' jobs."""
    query = select_job(tenant, job_id)
    return require(session.scalar(query.with_for_update() if lock else query), job_id)


def get_for_share(session: Session, tenant: str, job_id: UUID) -> Job:
    """Return a job that nobody can delete until the transaction ends. Raises JobNotFound."""
    return require(session.scalar(select_job(tenant, job_id).with_for_update(read=True, key_share=True)), job_id)


def get_with_version(session: Session, tenant: str, job_id: UUID) -> tuple[Job, str]:
    """Return a tenant's job and the version of its row, both of one moment. Raises JobNotFound."""
    job, version = require(session.execute(select_job(tenant, job_id).add_columns(VERSION)).first(), job_id)
    return job, version


def find(session: Session, tenant: str, job_id: UUID) -> Job | None:
    """Find a tenant's job; None when there is none."""
    return session.scalar(select_job(tenant, job_id))


def keep_all(session: Session, tenant: str, ids: Collection[UUID]) -> UUID | None:
    """Keep many jobs from deletion until the transaction ends. Return the first one that is gone already, None if none is."""
    ordered = sorted(ids)
    for start in range(0, len(ordered), CHUNK_ROWS):
        some = ordered[start : start + CHUNK_ROWS]
        kept = select(Job.id).where(Job.tenant == tenant, Job.id.in_(some)).order_by(Job.id)
        found = set(session.scalars(kept.with_for_update(read=True, key_share=True)))
        missing = next((job_id for job_id in some if job_id not in found), None)
        if missing is not None:
            return missing
    return None


def require(found: T | None, job_id: UUID) -> T:
    """Raise JobNotFound when no job was found."""
    if found is None:
        raise JobNotFound(f"there is no job {job_id}")
    return found


def reserve_id(session: Session, tenant: str, client_id: UUID) -> Job | None:
    """Reserve an id that a client chose until the transaction ends, and return the tenant's job that has it, if any."""
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(f"{client_id} {tenant}", 0))))
    return session.scalar(select_job(tenant, client_id))


def page(
    session: Session, tenant: str, wanted: JobFilter, *, limit: int, before: int | None = None, with_spec: bool = False
) -> tuple[list[Job], bool]:
    """List a tenant's jobs from the newest on, and tell whether there are more.

    Args:
        before: only jobs whose seq is lower.
        with_spec: whether to read the specs too; then a page ends early, after MAX_PAGE_BYTES of them.
    """
    query = select(Job).where(Job.tenant == tenant, *wanted.conditions()).order_by(Job.seq.desc()).limit(limit + 1)
    query = (query if before is None else query.where(Job.seq < before)).options(defer(Job.resume_point, raiseload=True))
    if not with_spec:
        jobs = list(session.scalars(query.options(defer(Job.spec, raiseload=True))))
        return jobs[:limit], len(jobs) > limit
    found: list[Job] = []
    total = 0
    sized = query.add_columns(func.octet_length(cast(Job.spec, Text))).execution_options(yield_per=ROWS_AT_ONCE)
    with session.execute(sized) as rows:
        for job, spec_bytes in rows:
            total += spec_bytes
            if len(found) == limit or (found and total > MAX_PAGE_BYTES):
                return found, True
            found.append(job)
    return found, False


def oldest_queued_s(session: Session, tenant: str) -> float | None:
    """Return how many seconds a tenant's oldest queued job has waited; None when none waits."""
    waited = func.extract("epoch", func.clock_timestamp() - func.min(Job.created_at))
    age = session.scalar(select(waited).where(Job.tenant == tenant, Job.state == JobState.QUEUED))
    return None if age is None else round(float(age), 3)


def list_attempts(session: Session, job: Job) -> list[Attempt]:
    """List a job's attempts from the first on."""
    return list(session.scalars(select(Attempt).where(Attempt.job_id == job.id).order_by(Attempt.attempt)))


def request_cancel(session: Session, tenant: str, job_id: UUID) -> Job:
    """Cancel a queued job at once; ask the worker to drop a running one; leave an ended one alone. Raises JobNotFound."""
    job = get(session, tenant, job_id, lock=True)
    if job.state == JobState.QUEUED:
        session.execute(transition(JobState.CANCELED, Job.id == job.id))
    elif job.state == JobState.RUNNING and job.cancel_requested_at is None:
        session.execute(update(Job).where(Job.id == job.id).values(cancel_requested_at=func.clock_timestamp()))
    session.refresh(job)
    return job


def request_stop(session: Session, tenant: str, job_id: UUID) -> Job:
    """Ask the worker to end the drag and keep the picture. A queued job will end at its first step. Raises JobNotFound."""
    job = get(session, tenant, job_id, lock=True)
    if job.state in (JobState.QUEUED, JobState.RUNNING) and job.stop_requested_at is None:
        session.execute(update(Job).where(Job.id == job.id).values(stop_requested_at=func.clock_timestamp()))
    session.refresh(job)
    return job


def expire(session: Session) -> int:
    """End the jobs that should have started by now and did not; return how many."""
    late = (Job.state == JobState.QUEUED, Job.started_at.is_(None), Job.start_before <= func.clock_timestamp())
    return len(session.execute(transition(JobState.EXPIRED, *late).returning(Job.id)).all())


def get_ancestry(session: Session, job: Job) -> Ancestry:
    """Return the results that a job goes on from. Raises ArtifactNotFound, JobNotFound."""
    if job.parent is None:
        raise JobNotFound("the job to go on from is gone")
    parent = get(session, job.tenant, job.parent)
    latent = artifacts.get(session, parent, "latent.safetensors")
    changes = session.scalar(artifacts.select_artifacts(parent).where(Artifact.name == "generator.safetensors"))
    root = session.get(Job, job.root)
    return Ancestry(
        latent_key=latent.key,
        changes_key=None if changes is None else changes.key,
        root_spec=None if root is None else root.spec,
    )


def find_photo(session: Session, job: Job) -> str | None:
    """Return the sha256 of the upload that a job's chain began with, while its first job is kept."""
    root = job if job.root is None else session.get(Job, job.root)
    return None if root is None else root.spec["source"].get("upload")
