"""The rows of artifacts: stored objects of attempts. A job shows the artifacts of its latest attempt. Nothing here commits."""

from dataclasses import dataclass

from sqlalchemy import Select, select, tuple_
from sqlalchemy.orm import Session

from jobs.errors import ArtifactNotFound
from jobs.tables import Artifact, Job


@dataclass(frozen=True, kw_only=True)
class StoredObject:
    """An object in the store, as an artifact's row describes it."""

    name: str
    key: str
    media_type: str
    size_bytes: int
    sha256: str


def select_artifacts(job: Job) -> Select[Artifact]:
    """Select the artifacts of the job's latest attempt."""
    return select(Artifact).where(tuple_(Artifact.job_id, Artifact.attempt) == (job.id, job.attempt))


def list_without_frames(session: Session, job: Job) -> list[Artifact]:
    """List the job's artifacts by name, without the frames: fewer than twenty."""
    query = select_artifacts(job).where(Artifact.name.not_like("frames/%"))
    return list(session.scalars(query.order_by(Artifact.name)))


def list_frames(session: Session, job: Job, *, after: str, limit: int) -> list[Artifact]:
    """List the job's frames by iteration, those whose name comes after `after`."""
    query = select_artifacts(job).where(Artifact.name.like("frames/%"), Artifact.name > after)
    return list(session.scalars(query.order_by(Artifact.name).limit(limit)))


def find_latest_frame(session: Session, job: Job) -> Artifact | None:
    """Find the job's last frame; None when there is none yet."""
    query = select_artifacts(job).where(Artifact.name.like("frames/%"))
    return session.scalar(query.order_by(Artifact.name.desc()).limit(1))


def get(session: Session, job: Job, name: str) -> Artifact:
    """Return a job's artifact by its name. Raises ArtifactNotFound."""
    artifact = session.scalar(select_artifacts(job).where(Artifact.name == name))
    if artifact is None:
        raise ArtifactNotFound(f"job {job.public_id} has no artifact {name[:100]!r}")
    return artifact
