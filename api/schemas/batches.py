"""Schemas of batches and of the lines of their results."""

from datetime import datetime
from typing import Self
from uuid import UUID

from pydantic import BaseModel

from api.schemas.artifacts import artifact_url
from api.schemas.jobs import JobFailure
from api.schemas.problems import FieldProblem
from api.schemas.rows import Row
from jobs.queue.batches import BatchSummary
from jobs.states import JobState
from jobs.tables import Job, Refusal


class BatchHead(Row):
    """One batch without the counts of its jobs."""

    id: UUID
    lines: int  # that were sent
    refused: int  # of them, because they are no jobs; /errors says why
    created_at: datetime
    cancel_requested_at: datetime | None


class BatchView(BatchHead):
    """One batch with the counts of its jobs."""

    counts: dict[JobState, int]  # of the others, by state
    finished_at: datetime | None  # when the last job ended

    @classmethod
    def of(cls, summary: BatchSummary) -> Self:
        """Return the view of a batch and its counts."""
        head = BatchHead.model_validate(summary.batch).model_dump()
        counts = {JobState(state): count for state, count in summary.counts.items()}
        return cls(**head, counts=counts, finished_at=summary.finished_at)


class BatchPage(BaseModel):
    """A page of batches."""

    batches: list[BatchHead]  # the newest first
    next_cursor: str | None


class BatchLine(BaseModel):
    """How one line of a batch ended."""

    line: int | None = None  # of one that is no job
    custom_id: str | None
    job: UUID | None = None
    state: str  # a job's, or refused
    stop_reason: str | None = None
    result: str | None = None  # where result.png is
    error: JobFailure | None = None
    problems: list[FieldProblem] = []

    @classmethod
    def of(cls, job: Job) -> Self:
        """Return the line of a job that has ended."""
        succeeded = job.state == JobState.SUCCEEDED
        return cls(
            custom_id=job.custom_id, job=job.public_id, state=job.state, stop_reason=job.stop_reason, error=JobFailure.of(job),
            result=artifact_url(job.public_id, "result.png") if succeeded else None,
        )  # fmt: skip

    @classmethod
    def refused(cls, refusal: Refusal) -> Self:
        """Return the answer for a posted line that is no job."""
        problems = [FieldProblem(**problem) for problem in refusal.problems]
        return cls(line=refusal.line, custom_id=refusal.custom_id, state="refused", problems=problems)
