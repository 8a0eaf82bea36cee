"""Batches: many jobs sent together as JSONL, one {"custom_id": ..., "job": {...}} a line, in a lane of their own.

A batch is stored whole or not at all. A line that is no job is stored as a refusal; the other lines become jobs all the same.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from uuid import UUID, uuid4

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.orm import Session, defer

from jobs.errors import BatchNotFound, InvalidJob, JobNotFound, ObjectMissing, ParentUnusable, Problem, UploadNotFound
from jobs.models.manifest import ModelManifest
from jobs.queue.batch_spool import BatchSpool
from jobs.queue.jobs import row_without_spec
from jobs.queue.priorities import BATCH_OFFSET
from jobs.queue.state_updates import transition
from jobs.spec.validation import SubmissionInputs, check_submission
from jobs.states import JobState
from jobs.tables import Batch, Job, Refusal

MAX_LINES = 50_000
MAX_LINE_BYTES = 2**17
MAX_LINE_VALUES = 60_000  # JSON values; the largest legal shapes are 64 polygons of 256 points
MAX_CUSTOM_ID_LENGTH = 200
MAX_PROBLEMS = 10  # stored of one line
CANCEL_CHUNK_ROWS = 5_000
CHUNK_ROWS = 500  # read in one statement
UNSUCCESSFUL_STATES = (JobState.FAILED, JobState.CANCELED, JobState.EXPIRED)


@dataclass
class BatchReading:
    """The state of reading a batch: how many lines so far, and what was found in them."""

    max_lines: int = MAX_LINES
    lines: int = 0
    refused: int = 0
    custom_ids: set[str] = field(default_factory=set)
    pools: dict[str, int] = field(default_factory=dict)  # jobs for each

    @property
    def jobs(self) -> int:
        """Return how many lines are jobs."""
        return sum(self.pools.values())


def storable_text(text: str) -> str:
    """Replace the characters that Postgres and UTF-8 cannot store."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "?")


@dataclass(frozen=True, kw_only=True)
class BatchSummary:
    """The state of a batch."""

    batch: Batch
    counts: dict[str, int]  # jobs by state
    finished_at: datetime | None  # when its last job ended; None before


def check_line(
    line: bytes, reading: BatchReading, spool: BatchSpool, tenant: str, manifest: ModelManifest, inputs: SubmissionInputs
) -> None:
    """Check a line and spool it as a job or as a refusal; an empty one is none. No transaction is open meanwhile.

    Raises:
        InvalidJob: the batch has too many lines.
        StorageUnavailable, DecoderBusy, Canceled: the whole batch cannot be checked.
    """
    if not line.strip():
        return
    reading.lines += 1
    if reading.lines > reading.max_lines:
        raise InvalidJob([Problem(field="body", message=f"may have {reading.max_lines} lines")])
    custom_id: str | None = None
    try:
        custom_id, document = parse_line(line, reading)
        submission = check_submission(document, manifest, inputs=inputs)
    except InvalidJob as error:
        add_refusal(spool, reading, custom_id, error.problems)
        return
    except (UploadNotFound, JobNotFound, ParentUnusable, ObjectMissing) as error:  # an input of the job is not there
        add_refusal(spool, reading, custom_id, [Problem(field="job.source", message=str(error))])
        return
    reading.pools[submission.pool] = reading.pools.get(submission.pool, 0) + 1
    row = row_without_spec(uuid4(), tenant, submission)
    row |= {"custom_id": custom_id, "priority": row["priority"] + BATCH_OFFSET, "spec": submission.spec.model_dump_json()}
    spool.add_job(row)


def add_refusal(spool: BatchSpool, reading: BatchReading, custom_id: str | None, problems: Iterable[Problem]) -> None:
    """Spool the current line as no job, with its first problems."""
    first = islice(problems, MAX_PROBLEMS)
    rows = [{"field": storable_text(problem.field), "message": storable_text(problem.message)} for problem in first]
    reading.refused += 1
    spool.add_refusal(reading.lines, custom_id, rows)


def add(session: Session, tenant: str, reading: BatchReading, spool: BatchSpool) -> Batch:
    """Store a batch with its jobs, queued. Raises InvalidJob when it has no line."""
    if reading.lines == 0:
        raise InvalidJob([Problem(field="body", message='has no line: send JSONL of {"custom_id": ..., "job": {...}}')])
    batch = Batch(id=spool.batch, tenant=tenant, lines=reading.lines, refused=reading.refused)
    session.add(batch)
    session.flush()
    spool.copy_into(session)
    return batch


def parse_line(line: bytes, reading: BatchReading) -> tuple[str, object]:
    """Return a line's custom_id (by default its number) and its job document. Raises InvalidJob."""
    if len(line) > MAX_LINE_BYTES:
        raise InvalidJob([Problem(field="line", message=f"may have {MAX_LINE_BYTES} bytes, has {len(line)}")])
    check_values(line)
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidJob([Problem(field="line", message=f"is not JSON ({error})")]) from error
    if not isinstance(document, dict) or not document.keys() <= {"custom_id", "job"} or "job" not in document:
        raise InvalidJob([Problem(field="line", message="must be an object with job and, if you like, custom_id")])
    custom_id = document.get("custom_id", str(reading.lines))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID_LENGTH or not custom_id.isprintable():
        raise InvalidJob(
            [Problem(field="custom_id", message=f"must be text of 1 to {MAX_CUSTOM_ID_LENGTH} printable characters")]
        )
    if custom_id in reading.custom_ids:
        raise InvalidJob([Problem(field="custom_id", message=f"{custom_id!r} is an earlier line's")])
    reading.custom_ids.add(custom_id)
    return custom_id, document["job"]


def check_values(line: bytes) -> None:
    """Bound the number of JSON values in a line before they become objects. Raises InvalidJob."""
    values = sum(map(line.count, (b",", b":", b"[", b"{")))  # also within texts: never fewer than there are
    if values > MAX_LINE_VALUES:
        raise InvalidJob([Problem(field="line", message=f"may have {MAX_LINE_VALUES} JSON values, has about {values}")])


def get(session: Session, tenant: str, batch_id: UUID, *, lock: bool = False) -> Batch:
    """Return a tenant's batch. Raises BatchNotFound, also for other tenants' batches."""
    query = select(Batch).where(Batch.id == batch_id, Batch.tenant == tenant)
    batch = session.scalar(query.with_for_update() if lock else query)
    if batch is None:
        raise BatchNotFound(f"there is no batch {batch_id}")
    return batch


def page(session: Session, tenant: str, *, limit: int, before: int | None = None) -> list[Batch]:
    """List a tenant's batches from the newest on; with `before`, those whose seq is lower."""
    query = select(Batch).where(Batch.tenant == tenant).order_by(Batch.seq.desc()).limit(limit)
    return list(session.scalars(query if before is None else query.where(Batch.seq < before)))


def summarize(session: Session, batch: Batch) -> BatchSummary:
    """Count a batch's jobs by state, and find when the last one ended."""
    query = select(Job.state, func.count(), func.max(Job.finished_at)).where(Job.batch == batch.id).group_by(Job.state)
    found = {state: (count, last) for state, count, last in session.execute(query)}
    active = JobState.QUEUED in found or JobState.RUNNING in found
    last = max((last for _, last in found.values() if last is not None), default=batch.created_at)
    counts = {str(state): count for state, (count, _) in found.items()}
    return BatchSummary(batch=batch, counts=counts, finished_at=None if active else last)


def list_jobs(session: Session, batch: Batch, states: Iterable[JobState], *, after: int, limit: int) -> list[Job]:
    """List a batch's jobs, without their specs, in these states and of a seq greater than `after`, in the order of its lines."""
    small = (defer(Job.spec, raiseload=True), defer(Job.resume_point, raiseload=True), defer(Job.progress, raiseload=True))
    query = select(Job).options(*small).where(Job.batch == batch.id, Job.seq > after, Job.state.in_(list(states)))
    return list(session.scalars(query.order_by(Job.seq).limit(limit)))


def list_refusals(session: Session, batch: Batch, *, after: int, limit: int) -> list[Refusal]:
    """List a batch's refused lines whose number is greater than `after`, in order."""
    query = select(Refusal).where(Refusal.batch == batch.id, Refusal.line > after)
    return list(session.scalars(query.order_by(Refusal.line).limit(limit)))


def cancel(session: Session, tenant: str, batch_id: UUID) -> Batch:
    """Cancel the queued jobs and ask the workers to drop the running ones; ended jobs stay. Raises BatchNotFound."""
    batch = get(session, tenant, batch_id, lock=True)
    now = session.scalar(select(func.now()))
    batch.cancel_requested_at = batch.cancel_requested_at or now
    queued = select(Job.id).where(Job.batch == batch_id, Job.state == JobState.QUEUED).limit(CANCEL_CHUNK_ROWS)
    while session.execute(transition(JobState.CANCELED, Job.id.in_(queued)).returning(Job.id)).all():
        pass  # in chunks, because each statement has a time limit
    running = and_(Job.batch == batch_id, Job.state == JobState.RUNNING, Job.cancel_requested_at.is_(None))
    session.execute(update(Job).where(running).values(cancel_requested_at=now))
    return batch


def delete_empty(session: Session, limit: int) -> int:
    """Delete batches older than a day whose jobs are all gone; return how many. A younger one may still be on its way."""
    long_ago = Batch.created_at < func.now() - timedelta(days=1)
    empty = select(Batch.id).where(long_ago, ~select(Job.id).where(Job.batch == Batch.id).exists()).limit(limit)
    deletion = delete(Batch).where(Batch.id.in_(empty)).returning(Batch.id)
    return len(session.execute(deletion).all())
