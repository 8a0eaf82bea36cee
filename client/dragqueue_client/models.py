"""What the service answers. Fields that a newer service adds are ignored, so that older clients go on working."""

from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import BaseModel

State = Literal["queued", "running", "succeeded", "failed", "canceled", "expired"]


class Failure(BaseModel):
    code: str
    message: str
    retryable: bool  # whether the same job might succeed later


class Expected(BaseModel):
    """Seconds, from how long jobs of the model took lately."""

    p50: float
    p80: float


class Place(BaseModel):
    position: int  # jobs that are likely to start before
    starts_in_s: Expected | None


class Artifact(BaseModel):
    name: str  # result.png, frames/00012.webp
    media_type: str
    size_bytes: int
    sha256: str
    url: str  # path on the service, which redirects to the store


class Job(BaseModel):
    """One edit, as it stood when the service answered."""

    id: UUID
    state: State
    model: str
    spec: dict[str, Any]  # with every default filled in
    attempt: int
    batch: UUID | None = None
    custom_id: str | None = None
    progress: dict[str, Any] | None = None  # phase, iteration, max_iterations; distance_px, handles of a drag
    stop_reason: str | None = None  # reached, max_iterations, stalled, stopped
    parent: UUID | None = None
    root: UUID | None = None
    error: Failure | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = None
    place: Place | None = None  # while it is queued
    preview: str | None = None  # path of the latest frame, while it runs
    artifacts: list[Artifact] | None = None

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")

    @property
    def succeeded(self) -> bool:
        return self.state == "succeeded"


class JobPage(BaseModel):
    jobs: list[Job]
    next_cursor: str | None


class FramePage(BaseModel):
    frames: list[Artifact]
    next_cursor: str | None


class Event(BaseModel):
    """Something that happened to a job."""

    seq: int
    type: str  # job.queued, job.running, job.succeeded, ...
    data: dict[str, Any]
    at: datetime


class Upload(BaseModel):
    sha256: str  # the name that jobs use
    kind: Literal["image", "mask", "latent"]
    width: int
    height: int
    size_bytes: int


class Presigned(BaseModel):
    """Where a large file is sent to, past the service."""

    id: UUID
    url: str
    method: str
    headers: dict[str, str]


class Model(BaseModel):
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
    models: list[Model]


class Usage(BaseModel):
    queued: int
    running: int
    uploads: int
    stored_bytes: int
    max_queued: int | None = None
    max_running: int | None = None
    max_uploads: int | None = None
    max_stored_bytes: int | None = None


class Counts(BaseModel):
    """Jobs of a batch by state."""

    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    expired: int = 0


class Batch(BaseModel):
    id: UUID
    lines: int  # that were sent
    refused: int  # of them, because they are no jobs
    counts: Counts  # of the others
    created_at: datetime
    finished_at: datetime | None = None
    cancel_requested_at: datetime | None = None


class BatchLine(BaseModel):
    """How one line of a batch ended."""

    line: int | None = None  # of a line that is no job
    custom_id: str | None = None
    job: UUID | None = None
    state: str  # a job's, or refused
    stop_reason: str | None = None
    error: Failure | None = None
    problems: list[dict[str, str]] = []
