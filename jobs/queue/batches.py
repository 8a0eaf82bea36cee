"""Many jobs sent together: JSONL, one {"custom_id": ..., "job": {...}} a line. They wait in a lane of their own.

A batch is stored whole or not at all; lines that are no jobs are noted as refusals and keep nobody else out.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import and_, delete, func, insert, select, update
from sqlalchemy.orm import Session

from jobs.errors import BatchNotFound, InvalidJob, JobNotFound, ObjectMissing, ParentUnusable, Problem, UploadNotFound
from jobs.models.manifest import ModelManifest
from jobs.queue.priorities import BATCH_OFFSET
from jobs.queue.repository import JobRepository, columns
from jobs.spec.validation import SubmissionInputs, check_submission
from jobs.states import JobState
from jobs.tables import Batch, Job, Refusal

MAX_LINES = 50_000
MAX_LINE_BYTES = 2**17
MAX_CUSTOM_ID = 200  # characters
MOST_PROBLEMS = 10  # told of one line
CANCELED_AT_ONCE = 5_000
TOGETHER = 500  # rows written, or read, at a time
ENDED_BADLY = (JobState.FAILED, JobState.CANCELED, JobState.EXPIRED)


@dataclass
class Reading:
    """How far a batch has been read."""

    lines: int = 0
    refusals: list[dict[str, Any]] = field(default_factory=list)  # rows not written yet
    refused: int = 0
    names: set[str] = field(default_factory=set)  # custom_ids so far
    pools: dict[str, int] = field(default_factory=dict)  # jobs queued for each

    def refuse(self, custom_id: str | None, problems: Iterable[Problem]) -> None:
        first = islice(problems, MOST_PROBLEMS)
        told = [{"field": storable(problem.field), "message": storable(problem.message)} for problem in first]
        self.refusals.append({"line": self.lines, "custom_id": custom_id, "problems": told})
        self.refused += 1


def storable(text: str) -> str:
    """Without what Postgres and UTF-8 have no place for."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "?")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """How a batch stands."""

    batch: Batch
    counts: dict[str, int]  # jobs by state
    finished_at: datetime | None  # when its last job ended; None before


def add(
    session: Session, tenant: str, lines: Iterable[bytes], manifest: ModelManifest, inputs: SubmissionInputs
) -> tuple[Batch, Reading]:
    """Store a batch with its jobs, queued. Raises InvalidJob when it has no line, or too many."""
    batch_id, reading = uuid4(), Reading()
    batch = Batch(id=batch_id, tenant=tenant, lines=0, refused=0)
    session.add(batch)
    session.flush()
    rows = read_lines(session, lines, reading, tenant, batch_id, manifest, inputs)
    while chunk := list(islice(rows, TOGETHER)):
        session.execute(insert(Job), chunk)
    write_refusals(session, batch_id, reading)
    if reading.lines == 0:
        raise InvalidJob([Problem(field="body", message='has no line: send JSONL of {"custom_id": ..., "job": {...}}')])
    batch.lines, batch.refused = reading.lines, reading.refused
    session.flush()
    return batch, reading


def write_refusals(session: Session, batch_id: UUID, reading: Reading) -> None:
    if reading.refusals:
        session.execute(insert(Refusal), [{"batch": batch_id, **row} for row in reading.refusals])
        reading.refusals.clear()


def read_lines(
    session: Session,
    lines: Iterable[bytes],
    reading: Reading,
    tenant: str,
    batch_id: UUID,
    manifest: ModelManifest,
    inputs: SubmissionInputs,
) -> Iterator[dict[str, Any]]:
    """The rows of lines that are jobs; the others are noted. Raises InvalidJob."""
    for line in lines:
        if not line.strip():
            continue
        reading.lines += 1
        if len(reading.refusals) >= TOGETHER:  # also keeps the transaction from idling
            write_refusals(session, batch_id, reading)
        if reading.lines > MAX_LINES:
            raise InvalidJob([Problem(field="body", message=f"may have {MAX_LINES} lines")])
        custom_id: str | None = None
        try:
            custom_id, document = open_line(line, reading)
            submission = check_submission(document, manifest, inputs=inputs)
        except InvalidJob as error:
            reading.refuse(custom_id, error.problems)
            continue
        except (UploadNotFound, JobNotFound, ParentUnusable, ObjectMissing) as error:  # what it builds on is not there
            reading.refuse(custom_id, [Problem(field="job.source", message=str(error))])
            continue
        reading.pools[submission.pool] = reading.pools.get(submission.pool, 0) + 1
        row = columns(uuid4(), tenant, submission)
        yield row | {"batch": batch_id, "custom_id": custom_id, "priority": row["priority"] + BATCH_OFFSET}


def open_line(line: bytes, reading: Reading) -> tuple[str, object]:
    """A line's custom_id, by default its number, and its job. Raises InvalidJob."""
    if len(line) > MAX_LINE_BYTES:
        raise InvalidJob([Problem(field="line", message=f"may have {MAX_LINE_BYTES} bytes, has {len(line)}")])
    try:
        document = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidJob([Problem(field="line", message=f"is not JSON ({error})")]) from error
    if not isinstance(document, dict) or not document.keys() <= {"custom_id", "job"} or "job" not in document:
        raise InvalidJob([Problem(field="line", message="must be an object with job and, if you like, custom_id")])
    custom_id = document.get("custom_id", str(reading.lines))
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_CUSTOM_ID or not custom_id.isprintable():
        raise InvalidJob([Problem(field="custom_id", message=f"must be text of 1 to {MAX_CUSTOM_ID} printable characters")])
    if custom_id in reading.names:
        raise InvalidJob([Problem(field="custom_id", message=f"{custom_id!r} is an earlier line's")])
    reading.names.add(custom_id)
    return custom_id, document["job"]


def get(session: Session, tenant: str, batch_id: UUID, *, lock: bool = False) -> Batch:
    """Raises BatchNotFound, also for other tenants' batches."""
    query = select(Batch).where(Batch.id == batch_id, Batch.tenant == tenant)
    batch = session.scalar(query.with_for_update() if lock else query)
    if batch is None:
        raise BatchNotFound(f"there is no batch {batch_id}")
    return batch


def page(session: Session, tenant: str, *, limit: int, before: int | None = None) -> list[Batch]:
    """Batches from the newest on, those with a seq below `before`."""
    query = select(Batch).where(Batch.tenant == tenant).order_by(Batch.seq.desc()).limit(limit)
    return list(session.scalars(query if before is None else query.where(Batch.seq < before)))


def summary(session: Session, batch: Batch) -> Summary:
    query = select(Job.state, func.count(), func.max(Job.finished_at)).where(Job.batch == batch.id).group_by(Job.state)
    found = {state: (count, last) for state, count, last in session.execute(query)}
    active = JobState.QUEUED in found or JobState.RUNNING in found
    last = max((last for _, last in found.values() if last is not None), default=batch.created_at)
    counts = {str(state): count for state, (count, _) in found.items()}
    return Summary(batch=batch, counts=counts, finished_at=None if active else last)


def jobs_of(session: Session, batch: Batch, states: Iterable[JobState], *, after: int, limit: int) -> list[Job]:
    """A batch's jobs in these states in the order of its lines, those with a seq above `after`."""
    query = select(Job).where(Job.batch == batch.id, Job.seq > after, Job.state.in_(list(states)))
    return list(session.scalars(query.order_by(Job.seq).limit(limit)))


def refusals_of(session: Session, batch: Batch, *, after: int, limit: int) -> list[Refusal]:
    query = select(Refusal).where(Refusal.batch == batch.id, Refusal.line > after)
    return list(session.scalars(query.order_by(Refusal.line).limit(limit)))


def cancel(session: Session, tenant: str, batch_id: UUID) -> Batch:
    """Cancel what waits, ask the workers to drop what runs; what has ended stays. Raises BatchNotFound."""
    batch = get(session, tenant, batch_id, lock=True)
    now = session.scalar(select(func.now()))
    batch.cancel_requested_at = batch.cancel_requested_at or now
    queued = select(Job.id).where(Job.batch == batch_id, Job.state == JobState.QUEUED).limit(CANCELED_AT_ONCE)
    while session.execute(JobRepository.transition(JobState.CANCELED, Job.id.in_(queued)).returning(Job.id)).all():
        pass  # by parts: each statement has its time limit
    running = and_(Job.batch == batch_id, Job.state == JobState.RUNNING, Job.cancel_requested_at.is_(None))
    session.execute(update(Job).where(running).values(cancel_requested_at=now))
    return batch


def forget_empty(session: Session, limit: int) -> int:
    """Forget batches whose jobs are all gone; how many. A young one may still be on its way."""
    long_ago = Batch.created_at < func.now() - timedelta(days=1)
    empty = select(Batch.id).where(long_ago, ~select(Job.id).where(Job.batch == Batch.id).exists()).limit(limit)
    gone = delete(Batch).where(Batch.id.in_(empty)).returning(Batch.id)
    return len(session.execute(gone).all())
