"""What the API answers about jobs, uploads and models."""

from datetime import datetime
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from jobs.errors import ErrorCode
from jobs.models.manifest import ModelEntry
from jobs.queue.estimates import Expected, QueuePosition
from jobs.queue.events import EventType
from jobs.spec.job_spec import JobSpec, Source, UploadId
from jobs.states import Ending, JobState
from jobs.storage.presigned import MAX_BYTES
from jobs.tables import Artifact, Attempt, Event, Job


class Row(BaseModel):
    """Made of a row's columns."""

    model_config = ConfigDict(from_attributes=True)


class JobFailure(BaseModel):
    code: ErrorCode
    message: str
    retryable: bool  # whether the same job might succeed later


class Links(BaseModel):
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
        here = f"/v1/jobs/{job_id}"
        names = ("cancel", "stop", "retry", "events", "frames", "artifacts", "archive")
        return cls(self=here, **{name: f"{here}/{name}" for name in names})


class ArtifactView(Row):
    name: str
    media_type: str
    size_bytes: int
    sha256: str
    url: str  # follow it: 307 to a link of the store that lives some minutes

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        return cls.model_validate({**vars(artifact), "url": artifact_url(artifact.job_id, artifact.name)})


def artifact_url(job_id: UUID, name: str) -> str:
    return f"/v1/jobs/{job_id}/artifacts/{name}"


class AttemptView(Row):
    """One run of a job."""

    attempt: int
    worker: str  # host:pid
    began_at: datetime
    ended_at: datetime | None  # None while it runs
    ending: Ending | None
    reason: str | None  # of one that broke down, or failed the job


class ExpectedView(Row):
    """Seconds, from how long jobs of the model took lately."""

    p50: float
    p80: float  # of two jobs in ten it takes longer


class PlaceView(Row):
    """Where a queued job stands."""

    position: int  # jobs that are likely to start before
    starts_in_s: ExpectedView | None  # None: no worker serves its pool, or no job of its model has run yet


class JobView(BaseModel):
    """One job."""

    id: UUID
    state: JobState
    model: str
    spec: dict[str, Any]  # with every default filled in
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
    place: PlaceView | None = None  # while it is queued, where one job is looked at
    preview: str | None = None  # the latest frame stored, while it runs, where one job is looked at
    artifacts: list[ArtifactView] | None = None  # with ?expand=artifacts
    attempts: list[AttemptView] | None = None  # with ?expand=attempts

    @classmethod
    def of(cls, job: Job, artifacts: list[Artifact] | None = None, attempts: list[Attempt] | None = None) -> Self:
        same = ("id", "state", "model", "spec", "batch", "custom_id", "attempt", "progress", "stop_reason", "parent", "root")
        times = ("created_at", "started_at", "finished_at", "expires_at")
        return cls(
            **{name: getattr(job, name) for name in same + times},
            cancel_requested=job.cancel_requested_at is not None,
            error=failure(job),
            stop_requested=job.stop_requested_at is not None,
            links=Links.of(job.id),
            artifacts=None if artifacts is None else [ArtifactView.of(artifact) for artifact in artifacts],
            attempts=None if attempts is None else [AttemptView.model_validate(attempt) for attempt in attempts],
        )

    def placed(self, place: QueuePosition) -> Self:
        return self.model_copy(update={"place": PlaceView.model_validate(place)})

    def shown(self, frame: Artifact | None) -> Self:
        return self if frame is None else self.model_copy(update={"preview": artifact_url(frame.job_id, frame.name)})


def failure(job: Job) -> JobFailure | None:
    if job.error_code is None:
        return None
    code = ErrorCode(job.error_code)
    return JobFailure(code=code, message=job.error_message or "", retryable=code.retryable)


class JobPage(BaseModel):
    jobs: list[JobView]  # the newest first
    next_cursor: str | None  # None at the end


class FramePage(BaseModel):
    frames: list[ArtifactView]  # by iteration
    next_cursor: str | None


class ArtifactList(BaseModel):
    artifacts: list[ArtifactView]  # by name, without the frames


class EventView(Row):
    """Something that happened to a job."""

    seq: int
    type: EventType
    data: dict[str, Any]  # state, attempt; stop_reason, error_code, error_message where there are such
    at: datetime

    @classmethod
    def of(cls, event: Event) -> Self:
        return cls.model_validate(event)


class Verdict(BaseModel):
    """What would become of a job that is only checked."""

    spec: dict[str, Any]  # with every default filled in
    iterations: int  # of the drag, at most
    runs_for_s: ExpectedView | None  # as jobs of the model did lately; None when none has
    starts_in_s: ExpectedView | None  # if it were queued now

    @classmethod
    def of(cls, spec: JobSpec, run: Expected | None, wait: Expected | None) -> Self:
        iterations = spec.drag.max_iterations or 0 if spec.points else 0
        runs, starts = (None if found is None else ExpectedView.model_validate(found) for found in (run, wait))
        return cls(spec=spec.model_dump(mode="json"), iterations=iterations, runs_for_s=runs, starts_in_s=starts)


class QueueView(BaseModel):
    """How much of this tenant's waits and runs."""

    queued: int
    running: int
    oldest_queued_s: float | None  # age of the one that waits longest


class UsageView(Row):
    """What the tenant has, and may have; a limit that is null is none."""

    queued: int
    running: int
    uploads: int
    stored_bytes: int  # by the last measurement, minutes ago
    max_queued: int | None
    max_running: int | None
    max_uploads: int | None
    max_stored_bytes: int | None


class AuditView(Row):
    seq: int
    at: datetime
    actor: str  # id of a key, or an operator's user name
    action: str
    subject: str


class AuditPage(BaseModel):
    lines: list[AuditView]  # the newest first
    next_cursor: str | None


class UploadView(Row):
    """Something uploaded; jobs name it by its sha256."""

    sha256: str  # of what is kept, not of what was sent
    kind: Literal["image", "mask", "latent"]
    width: int  # pixels; of a latent the numbers in a row
    height: int  # pixels; of a latent its rows
    size_bytes: int
    created_at: datetime


class AnnouncedFile(BaseModel):
    """A file that is going to be sent to the store."""

    model_config = ConfigDict(extra="forbid")

    sha256: UploadId  # of the file; the upload that it becomes has another
    size_bytes: int = Field(ge=1, le=MAX_BYTES)
    kind: Literal["mask"] | None = None


class PresignedView(BaseModel):
    """Where a file is sent to, and how; its id then completes the upload."""

    id: UUID
    url: str
    method: Literal["PUT"] = "PUT"
    headers: dict[str, str]  # to be sent along as they are
    expires_at: datetime  # the link; what has been sent may be completed for another hour


class ModelView(BaseModel):
    """One model, and what its jobs take where they do not say."""

    name: str
    resolution: int  # pixels, width and height
    num_ws: int  # rows of w+
    classes: int  # of a conditional model, whose jobs must name one; else 0
    licence: str
    layout: str  # of the file it was converted from
    sha256: str
    truncation_psi: float
    learning_rate: float
    feature_resolution: int

    @classmethod
    def of(cls, entry: ModelEntry) -> Self:
        same = {name: getattr(entry, name) for name in ("name", "resolution", "num_ws", "licence", "layout", "sha256")}
        spec = JobSpec(model=entry.name, source=Source(seed=0)).resolved(entry)
        chosen = {name: getattr(spec.drag, name) for name in ("learning_rate", "feature_resolution")}
        return cls(**same, classes=entry.c_dim, truncation_psi=entry.defaults.truncation_psi, **chosen)


class ModelPage(BaseModel):
    models: list[ModelView]  # by name


class Health(BaseModel):
    status: str
    problems: list[str] = []
