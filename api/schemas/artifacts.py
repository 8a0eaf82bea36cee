"""Schemas of a job's artifacts and frames."""

from typing import Self
from uuid import UUID

from pydantic import BaseModel

from api.schemas.rows import Row
from jobs.tables import Artifact, Job


class ArtifactView(Row):
    """One stored object of a job."""

    name: str
    media_type: str
    size_bytes: int
    sha256: str
    url: str  # follow it: 307 to a link of the store that lives some minutes

    @classmethod
    def of(cls, artifact: Artifact, job: Job) -> Self:
        """Return the view of an artifact's row."""
        return cls.model_validate({**vars(artifact), "url": artifact_url(job.public_id, artifact.name)})


class FramePage(BaseModel):
    """A page of a job's frames."""

    frames: list[ArtifactView]  # by iteration
    next_cursor: str | None


class ArtifactList(BaseModel):
    """All artifacts of a job but its frames."""

    artifacts: list[ArtifactView]  # by name, without the frames


def artifact_url(job_id: UUID, name: str) -> str:
    """Return the path of an artifact in this API."""
    return f"/v1/jobs/{job_id}/artifacts/{name}"
