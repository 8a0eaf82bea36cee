"""Reading one job as clients see it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from api.schemas.jobs import JobView
from jobs.database import Sessions
from jobs.queue import jobs
from jobs.queue.estimates import estimate_position
from jobs.states import JobState
from jobs.storage import artifacts as artifact_rows

Expansion = Literal["artifacts", "attempts"]


@dataclass(frozen=True)
class JobReading:
    """A job as it was read."""

    json: bytes  # as clients see it
    state: JobState
    row_id: UUID  # which waits and events go by
    version: str  # of the row


def read_job(sessions: Sessions, tenant: str, job_id: UUID, expand: Sequence[Expansion] = ()) -> JobReading:
    """Read a job as clients see it. Raises JobNotFound."""
    with sessions() as session:
        job, version = jobs.get_with_version(session, tenant, job_id)
        artifacts = artifact_rows.list_without_frames(session, job) if "artifacts" in expand else None
        view = JobView.of(job, artifacts, jobs.list_attempts(session, job) if "attempts" in expand else None)
        if job.state == JobState.QUEUED:
            view = view.with_place(estimate_position(session, job))
        elif job.state == JobState.RUNNING:
            view = view.with_preview(artifact_rows.find_latest_frame(session, job))
        return JobReading(view.model_dump_json().encode(), JobState(job.state), job.id, version)
