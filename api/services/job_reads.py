"""Reading one job as clients see it."""

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from api.schemas.jobs import JobView
from jobs.database import Sessions
from jobs.queue import jobs
from jobs.queue.estimates import estimate_position
from jobs.queue.events import get_versions
from jobs.states import JobState
from jobs.storage import artifacts as artifact_rows

Expansion = Literal["artifacts", "attempts"]


def read_job(sessions: Sessions, tenant: str, job_id: UUID, expand: Sequence[Expansion] = ()) -> tuple[JobView, str]:
    """Return a job's view and the version of its row. Raises JobNotFound."""
    with sessions() as session:
        version = get_versions(session, [job_id]).get(job_id, "")  # before the job, so that no change in between is missed
        job = jobs.get(session, tenant, job_id)
        artifacts = artifact_rows.list_without_frames(session, job) if "artifacts" in expand else None
        view = JobView.of(job, artifacts, jobs.list_attempts(session, job) if "attempts" in expand else None)
        if job.state == JobState.QUEUED:
            view = view.with_place(estimate_position(session, job))
        elif job.state == JobState.RUNNING:
            view = view.with_preview(artifact_rows.find_latest_frame(session, job))
        return view, version


def read_body(sessions: Sessions, tenant: str, job_id: UUID, expand: Sequence[Expansion] = ()) -> tuple[JobState, bytes, str]:
    """Return a job's state, its view as JSON, and the version of its row. Raises JobNotFound."""
    view, version = read_job(sessions, tenant, job_id, expand)
    return view.state, view.model_dump_json().encode(), version
