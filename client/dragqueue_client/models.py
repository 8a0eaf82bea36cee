"""The documents that the service answers with. Fields that a newer service adds are ignored."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

JobState = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]


class JobError(BaseModel):
    """Why a job failed, or a line of a batch was refused."""

    code: str
    message: str
    retryable: bool  # whether the same job might succeed later


class WaitEstimate(BaseModel):
    """Seconds until a job starts, estimated from how long jobs of the model took lately."""

    p50: float
    p80: float


class QueuePosition(BaseModel):
    """Where a queued job stands."""

    position: int  # jobs that are likely to start before it
    starts_in_s: WaitEstimate | None


class Artifact(BaseModel):
    """A stored file of a job."""

    name: str  # result.png, frames/00012.webp
    media_type: str
    size_bytes: int
    sha256: str
    url: str  # path on the service, which redirects to the store


class JobSummary(BaseModel):
    """A job in a list, as it stood when the service answered."""

    id: UUID
    state: JobState
    model: str
    attempt: int
    batch: UUID | None = None
    custom_id: str | None = None
    progress: dict[str, Any] | None = None  # phase, iteration, max_iterations; distance_px, handles of a drag
    stop_reason: str | None = None  # reached, max_iterations, stalled, stopped
    parent: UUID | None = None
    root: UUID | None = None
    error: JobError | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None

    @property
    def ended(self) -> bool:
        """Whether the job is in one of its final states."""
        return self.state not in ("queued", "running")

    @property
    def succeeded(self) -> bool:
        """Whether the job has a result."""
        return self.state == "succeeded"


class Job(JobSummary):
    """A job as it stood when the service answered."""

    spec: dict[str, Any]  # with every default filled in
    place: QueuePosition | None = None  # while it is queued
    preview: str | None = None  # path of the latest frame, while it runs
    artifacts: list[Artifact] | None = None


class JobPage(BaseModel):
    """A part of the list of jobs."""

    jobs: list[JobSummary]
    next_cursor: str | None


class FramePage(BaseModel):
    """A part of the list of a job's frames."""

    frames: list[Artifact]
    next_cursor: str | None


class Event(BaseModel):
    """Something that happened to a job."""

    seq: int
    type: str  # job.queued, job.running, job.succeeded, ...
    data: dict[str, Any]
    at: datetime


class Upload(BaseModel):
    """A file that jobs can name."""

    sha256: str  # the name that jobs use
    kind: Literal["image", "mask", "latent"]
    width: int
    height: int
    size_bytes: int


class PresignedUpload(BaseModel):
    """A link of the store to which a large file is sent directly."""

    id: UUID
    url: str
    method: str
    headers: dict[str, str]


class Model(BaseModel):
    """A generator that jobs can name, and its defaults."""

    name: str
    resolution: int  # pixels, width and height
    num_ws: int
    classes: int
    licence: str
    sha256: str
    truncation_psi: float
    learning_rate: float
    feature_resolution: int


class ModelPage(BaseModel):
    """The list of models."""

    models: list[Model]


class Usage(BaseModel):
    """What the tenant has at the moment, and the most it may have; None means no limit."""

    queued: int
    running: int
    uploads: int
    stored_bytes: int
    max_queued: int | None = None
    max_running: int | None = None
    max_uploads: int | None = None
    max_stored_bytes: int | None = None


class BatchCounts(BaseModel):
    """Numbers of a batch's jobs by state."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    expired: int = 0


class Batch(BaseModel):
    """Jobs that were submitted together."""

    id: UUID
    lines: int  # that were sent
    refused: int  # of them, because they are no jobs
    counts: BatchCounts  # of the others
    created_at: datetime
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None


class BatchLine(BaseModel):
    """The outcome of one line of a batch."""

    line: int | None = None  # of a line that is no job
    custom_id: str | None = None
    job: UUID | None = None
    state: str  # a job's, or refused
    stop_reason: str | None = None
    error: JobError | None = None
    problems: list[dict[str, str]] = []
