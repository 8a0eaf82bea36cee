"""What the API answers."""

from datetime import datetime
from typing import Any, Literal, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from jobs.checkpoints import ModelEntry
from jobs.errors import ErrorCode
from jobs.models import Artifact, Attempt, Job
from jobs.spec import JobSpec, Source
from jobs.states import Ending, JobState


class JobFailure(BaseModel):
    code: ErrorCode
    message: str
    retryable: bool  # whether the same job might succeed later


class Links(BaseModel):
    self: str
    cancel: str
    stop: str
    frames: str


class ArtifactView(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    name: str
    media_type: str
    size_bytes: int
    sha256: str
    url: str  # follow it: 307 to a link of the store that lives some minutes

    @classmethod
    def of(cls, artifact: Artifact) -> Self:
        url = f"/v1/jobs/{artifact.job_id}/artifacts/{artifact.name}"
        return cls.model_validate({**vars(artifact), "url": url})


class AttemptView(BaseModel):
    """One run of a job."""

    model_config = ConfigDict(from_attributes=True)

    attempt: int
    worker: str  # host:pid
    began_at: datetime
    ended_at: datetime | None  # None while it runs
    ending: Ending | None
    reason: str | None  # of one that broke down, or failed the job


class JobView(BaseModel):
    """One job."""

    id: UUID
    state: JobState
    model: str
    spec: dict[str, Any]  # with every default filled in
    batch: UUID | None
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
    artifacts: list[ArtifactView] | None = None  # with ?expand=artifacts
    attempts: list[AttemptView] | None = None  # with ?expand=attempts

    @classmethod
    def of(cls, job: Job, artifacts: list[Artifact] | None = None, attempts: list[Attempt] | None = None) -> Self:
        here = f"/v1/jobs/{job.id}"
        same = ("id", "state", "model", "spec", "batch", "attempt", "progress", "stop_reason", "parent", "root")
        times = ("created_at", "started_at", "finished_at", "expires_at")
        return cls(
            **{name: getattr(job, name) for name in same + times},
            cancel_requested=job.cancel_requested_at is not None,
            error=failure(job),
            stop_requested=job.stop_requested_at is not None,
            links=Links(self=here, cancel=f"{here}/cancel", stop=f"{here}/stop", frames=f"{here}/frames"),
            artifacts=None if artifacts is None else [ArtifactView.of(artifact) for artifact in artifacts],
            attempts=None if attempts is None else [AttemptView.model_validate(attempt) for attempt in attempts],
        )


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


class UploadView(BaseModel):
    """Something uploaded; jobs name it by its sha256."""

    model_config = ConfigDict(from_attributes=True)

    sha256: str  # of what is kept, not of what was sent
    kind: Literal["image", "mask", "latent"]
    width: int  # pixels; of a latent the numbers in a row
    height: int  # pixels; of a latent its rows
    size_bytes: int
    created_at: datetime


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
