"""Reading one job as clients see it."""

from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from api.schemas.jobs import JobView
from jobs.database import Sessions
from jobs.queue.estimates import place
from jobs.queue.events import versions
from jobs.queue.repository import JobRepository
from jobs.states import JobState

Expansion = Literal["artifacts", "attempts"]


def read_job(sessions: Sessions, tenant: str, job_id: UUID, expand: Sequence[Expansion] = ()) -> tuple[JobView, str]:
    """Return a job's view and the version of its row. Raises JobNotFound."""
    with sessions() as session:
        jobs = JobRepository(session)
        version = versions(session, [job_id]).get(job_id, "")  # before the job, so that no change in between is missed
        job = jobs.get(tenant, job_id)
        artifacts = jobs.artifacts(job) if "artifacts" in expand else None
        view = JobView.of(job, artifacts, jobs.attempts(job) if "attempts" in expand else None)
        if job.state == JobState.QUEUED:
            view = view.with_place(place(session, job))
        elif job.state == JobState.RUNNING:
            view = view.with_preview(jobs.latest_frame(job))
        return view, version
