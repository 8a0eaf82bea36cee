"""Schemas of jobs: their state, their attempts, and what a check of one answers."""

from datetime import datetime
from typing import Any, Self
from uuid import UUID

from pydantic import BaseModel

from api.schemas.artifacts import ArtifactView, artifact_url
from api.schemas.rows import Row
from jobs.errors import ErrorCode
from jobs.queue.estimates import Expected, QueuePosition
from jobs.spec.job_spec import JobSpec
from jobs.states import Ending, JobState
from jobs.tables import Artifact, Attempt, Job


class JobFailure(BaseModel):
    """Why a job failed."""

    code: ErrorCode
    message: str
    retryable: bool  # whether the same job might succeed later

    @classmethod
    def of(cls, job: Job) -> Self | None:
        """Return why a job failed, or None when it did not."""
        if job.error_code is None:
            return None
        code = ErrorCode(job.error_code)
        return cls(code=code, message=job.error_message or "", retryable=code.retryable)


class Links(BaseModel):
    """Paths of everything that can be done with a job."""

    self: str
    cancel: str
    stop: str
    retry: str
    events: str
    frames: str
    artifacts: str
    archive: str  # of everything the job stored, as a zip

    @classmethod
    def of(cls, job_id: UUID) -> Self:
        """Return the links of a job."""
        path = f"/v1/jobs/{job_id}"
        names = ("cancel", "stop", "retry", "events", "frames", "artifacts", "archive")
        return cls(self=path, **{name: f"{path}/{name}" for name in names})


class AttemptView(Row):
    """One execution of a job."""

    attempt: int
    worker: str  # host:pid
    began_at: datetime
    ended_at: datetime | None  # None while it runs
    ending: Ending | None
    reason: str | None  # of one that broke down, or failed the job


class ExpectedView(Row):
    """How long something takes, in seconds, by what the latest jobs of the model took."""

    p50: float
    p80: float  # of two jobs in ten it takes longer


class PlaceView(Row):
    """The place of a job in the queue."""

    position: int  # jobs that are likely to start before
    starts_in_s: ExpectedView | None  # None: no worker serves its pool, or no job of its model has run yet


class JobSummary(BaseModel):
    """A job in a list."""

    id: UUID
    state: JobState
    model: str
    spec: dict[str, Any] | None = None  # with every default filled in; in lists with ?expand=spec
    batch: UUID | None
    custom_id: str | None  # in its batch
    attempt: int
    progress: dict[str, Any] | None  # phase, iteration, max_iterations; distance_px, handles of a drag; psnr_db of an inversion
    stop_reason: str | None  # reached, max_iterations, stalled, stopped
    cancel_requested: bool
    stop_requested: bool
    parent: UUID | None  # the job whose result it went on from
    root: UUID | None  # the first job of that chain
    error: JobFailure | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None  # afterwards row and artifacts may be deleted
    links: Links

    @classmethod
    def of(cls, job: Job, *, with_spec: bool = False) -> Self:
        """Return the summary of a job's row; its spec is not read unless it is asked for."""
        return cls(**columns(job), spec=job.spec if with_spec else None)


class JobView(JobSummary):
    """One job."""

    spec: dict[str, Any]  # with every default filled in
    place: PlaceView | None = None  # while it is queued, where one job is looked at
    preview: str | None = None  # the latest frame stored, while it runs, where one job is looked at
    artifacts: list[ArtifactView] | None = None  # with ?expand=artifacts
    attempts: list[AttemptView] | None = None  # with ?expand=attempts

    @classmethod
    def of(cls, job: Job, artifacts: list[Artifact] | None = None, attempts: list[Attempt] | None = None) -> Self:  # type: ignore[override]  # a view has always its spec
        """Return the view of a job's row, with its artifacts and attempts where they are given."""
        return cls(
            **columns(job),
            spec=job.spec,
            artifacts=None if artifacts is None else [ArtifactView.of(artifact, job) for artifact in artifacts],
            attempts=None if attempts is None else [AttemptView.model_validate(attempt) for attempt in attempts],
        )

    def with_place(self, place: QueuePosition) -> Self:
        """Return the view of a queued job with its place in the queue."""
        return self.model_copy(update={"place": PlaceView.model_validate(place)})

    def with_preview(self, frame: Artifact | None) -> Self:
        """Return the view of a running job with its latest frame."""
        return self if frame is None else self.model_copy(update={"preview": artifact_url(self.id, frame.name)})


def columns(job: Job) -> dict[str, Any]:
    """Return the fields that every view of a job's row has."""
    copied = ("state", "model", "batch", "custom_id", "attempt", "progress", "stop_reason")
    times = ("created_at", "started_at", "finished_at", "expires_at")
    return {
        "id": job.public_id,
        "parent": job.public_parent,
        "root": job.public_root,
        **{name: getattr(job, name) for name in copied + times},
        "cancel_requested": job.cancel_requested_at is not None,
        "error": JobFailure.of(job),
        "stop_requested": job.stop_requested_at is not None,
        "links": Links.of(job.public_id),
    }


class JobPage(BaseModel):
    """A page of jobs."""

    jobs: list[JobSummary]  # the newest first
    next_cursor: str | None  # None at the end


class Verdict(BaseModel):
    """What a submission of the job would come to."""

    spec: dict[str, Any]  # with every default filled in
    iterations: int  # of the drag, at most
    runs_for_s: ExpectedView | None  # as jobs of the model did lately; None when none has
    starts_in_s: ExpectedView | None  # if it were queued now

    @classmethod
    def of(cls, spec: JobSpec, run: Expected | None, wait: Expected | None) -> Self:
        """Return the verdict on a job that can run."""
        iterations = spec.drag.max_iterations or 0 if spec.points else 0
        runs, starts = (None if expected is None else ExpectedView.model_validate(expected) for expected in (run, wait))
        return cls(spec=spec.model_dump(mode="json"), iterations=iterations, runs_for_s=runs, starts_in_s=starts)
