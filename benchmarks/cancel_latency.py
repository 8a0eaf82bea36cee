"""Measures how soon a running drag ends once a client has canceled or stopped it."""

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

POLL_S = 0.01
ENDLESS = {
    "model": "demo-faces", "source": {"seed": 3}, "points": [{"handle": [75, 80], "target": [30, 40]}],
    "drag": {"max_iterations": 2000, "stop_distance": 0.1}, "output": {"frames_every": 20, "animation": []},
}  # fmt: skip


@dataclass(frozen=True)
class Latencies:
    """The times from the request to the drag's end, by the database's clock."""

    wish: str  # cancel or stop
    seconds: list[float]
    iteration_s: float  # of the running drags, mean
    beat_s: float  # between two progress writes

    def percentile(self, percent: int) -> float:
        """Return the latency in seconds that so many percent do not exceed."""
        return quantiles(self.seconds, n=100, method="inclusive")[percent - 1]


def measure_latencies(wish: str, count: int, report_drag: Callable[[], None]) -> Latencies:
    """Cancel or stop so many drags of a warm worker, one after another, each at a random moment."""
    with local_stack() as stack, running_service(stack, workers=1) as service, Client(service.url, service.key) as client:
        settings = stack.settings()
        sessions = make_sessions(settings.database_url)
        random.seed(0)
        latencies, iterations_s = [], []
        for _ in range(count):
            job_id = client.submit(ENDLESS).id
            iterations_s.append(measure_iteration(client, job_id))
            time.sleep(random.uniform(0, settings.progress_interval_s))
            client.cancel(job_id) if wish == "cancel" else client.stop(job_id)
            latencies.append(wait_for_end(sessions, job_id))
            client.wait(job_id, timeout_s=60)
            report_drag()
        sessions.kw["bind"].dispose()
        return Latencies(wish, latencies, sum(iterations_s) / len(iterations_s), settings.progress_interval_s)


def measure_iteration(client: Client, job_id: UUID) -> float:
    """Return the seconds of an iteration, from the first two progress reports that differ."""
    reports: list[tuple[float, int]] = []
    while len(reports) < 2:
        iteration = (client.get(job_id).progress or {}).get("iteration")
        if iteration and (not reports or iteration > reports[-1][1]):
            reports.append((time.monotonic(), iteration))
        time.sleep(0.05)
    (before, first), (now, second) = reports
    return (now - before) / (second - first)


def wait_for_end(sessions: Sessions, job_id: UUID) -> float:
    """Wait until the drag has ended, and return the seconds since the request; a stopped job still stores its result then."""
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
        time.sleep(POLL_S)
