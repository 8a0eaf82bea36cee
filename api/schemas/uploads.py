"""Schemas of uploads and presigned uploads."""

from datetime import datetime
from typing import Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from api.schemas.rows import Row
from jobs.spec.job_spec import UploadId
from jobs.storage.presigned import MAX_BYTES


class UploadView(Row):
    """An uploaded file. Jobs name it by its sha256."""

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
    """Where and how a file is sent to the store. Its id then completes the upload."""

    id: UUID
    url: str
    method: Literal["PUT"] = "PUT"
    headers: dict[str, str]  # to be sent along as they are
    expires_at: datetime  # the link; what has been sent may be completed for another hour
