"""How soon a running drag hears that a client has canceled or stopped it."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import quantiles
from uuid import UUID

from dragqueue_client import Client
from sqlalchemy import func, select

from embedded.service import running_service
from embedded.stack import local_stack
from jobs.database import Sessions, make_sessions
from jobs.tables import Job

LOOK_S = 0.01
ENDLESS = {
    "model": "demo-faces", "source": {"seed": 3}, "points": [{"handle": [75, 80], "target": [30, 40]}],
    "drag": {"max_iterations": 2000, "stop_distance": 0.1}, "output": {"frames_every": 20, "animation": []},
}  # fmt: skip


@dataclass(frozen=True)
class Latencies:
    """From the request to the drag's end, by the database's clock."""

    wish: str  # cancel or stop
    seconds: list[float]
    iteration_s: float  # of the drags background_thread, mean
    beat_s: float  # between two progress writes

    def percentile(self, percent: int) -> float:
        return quantiles(self.seconds, n=100, method="inclusive")[percent - 1]


def measure_latencies(wish: str, count: int, seen: Callable[[], None]) -> Latencies:
    with local_stack() as stack, running_service(stack, workers=1) as service, Client(service.url, service.key) as client:
        settings = stack.settings()
        sessions = make_sessions(settings.database_url)
        random.seed(0)
        waits, paces = [], []
        for _ in range(count):
            job_id = client.submit(ENDLESS).id
            paces.append(pace_of(client, job_id))
            time.sleep(random.uniform(0, settings.progress_interval_s))
            client.cancel(job_id) if wish == "cancel" else client.stop(job_id)
            waits.append(wait_of(sessions, job_id))
            client.wait(job_id, timeout_s=60)
            seen()
        sessions.kw["bind"].dispose()
        return Latencies(wish, waits, sum(paces) / len(paces), settings.progress_interval_s)


def pace_of(client: Client, job_id: UUID) -> float:
    """Seconds of an iteration, between the first two looks that show one."""
    looks: list[tuple[float, int]] = []
    while len(looks) < 2:
        iteration = (client.get(job_id).progress or {}).get("iteration")
        if iteration and (not looks or iteration > looks[-1][1]):
            looks.append((time.monotonic(), iteration))
        time.sleep(0.05)
    (before, first), (now, second) = looks
    return (now - before) / (second - first)


def wait_of(sessions: Sessions, job_id: UUID) -> float:
    """From the wish to the end of the drag: a stopped one has its result to store then."""
    asked_at = func.coalesce(Job.cancel_requested_at, Job.stop_requested_at)
    phase = Job.progress["phase"].as_string()
    query = select(func.clock_timestamp() - asked_at, Job.finished_at - asked_at, phase).where(Job.id == job_id)
    while True:
        with sessions() as session:
            now, ended, phase_now = session.execute(query).one()
        if ended is not None:
            return float(ended.total_seconds())
        if phase_now == "upload":
            return float(now.total_seconds())
        time.sleep(LOOK_S)
