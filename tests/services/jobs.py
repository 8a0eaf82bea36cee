"""Jobs for tests that talk to real servers."""

from uuid import UUID, uuid4

from jobs.models.manifest import ModelManifest
from jobs.queue import jobs
from jobs.spec.validation import check_submission
from jobs.tables import DEFAULT_TENANT, Job, Tenant
from tests.manifests import TINY

DOCUMENT = {
    "model": "tiny",
    "source": {"seed": 3},
    "points": [{"handle": [10, 10], "target": [20, 12]}],
    "drag": {"max_iterations": 10},
}
SLOW = {
    "model": "slow",
    "source": {"seed": 3},
    "points": [{"handle": [100, 100], "target": [180, 120]}],
    "movable": {"shapes": [{"box": [20, 20, 240, 200]}]},  # whole maps at every step, not windows
    "drag": {"max_iterations": 40},
    "output": {"frames_every": 8},
}
MODELS = ModelManifest(None, {name: TINY.model_copy(update={"name": name}) for name in ("tiny", "other")})


def add_job(sessions, *, tenant: str = DEFAULT_TENANT, **change) -> UUID:
    """Store a queued job of the tiny model."""
    with sessions.begin() as session:
        if session.get(Tenant, tenant) is None:
            session.add(Tenant(id=tenant))
            session.flush()
        return jobs.add(session, uuid4(), tenant, check_submission(DOCUMENT | change, MODELS)).id


def read_job(sessions, job_id: UUID) -> Job:
    with sessions() as session:
        return session.get(Job, job_id)
