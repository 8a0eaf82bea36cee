"""What the service adds to an edit: jobs of a warm worker beside the same edit by the command line alone."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from dragqueue_client import Client

from embedded.service import running_service
from embedded.stack import local_stack

ITERATIONS = 100
HANDLE, TARGET = (75, 80), (30, 40)  # too far away to be reached
OPTIONS = {"max_iterations": ITERATIONS, "stop_distance": 0.1}
JOB = {"model": "demo-faces", "source": {"seed": 3}, "points": [{"handle": HANDLE, "target": TARGET}], "drag": OPTIONS}
LIMIT_S, PER_FRAME_S = 0.5, 0.003  # that a job may take longer


@dataclass(frozen=True, kw_only=True)
class JobTime:
    """One job beside one edit, seconds."""

    job_s: float  # from its acceptance to its end
    waited_s: float  # of that, until it started
    load_s: float
    drag_s: float  # with the frames that are drawn and sent beside it
    frames: int
    alone_s: float  # of the command line, from the model loaded to the last file written

    @property
    def rest_s(self) -> float:
        """Overlay, animation, the last uploads, rows."""
        return self.job_s - self.waited_s - self.load_s - self.drag_s

    @property
    def allowed_s(self) -> float:
        return self.alone_s + LIMIT_S + PER_FRAME_S * self.frames


def measure(count: int, seen: Callable[[], None]) -> list[JobTime]:
    """After one job that warms the worker."""
    with local_stack() as stack, running_service(stack, workers=1) as service, Client(service.url, service.key) as client:
        client.wait(client.submit(JOB).id, timeout_s=300)
        times = []
        for _ in range(count):
            times.append(beside(client))
            seen()
    return times


def beside(client: Client) -> JobTime:
    job = client.wait(client.submit(JOB).id, timeout_s=300)
    assert job.started_at is not None
    assert job.finished_at is not None
    manifest = next(artifact for artifact in client.artifacts(job.id) if artifact.name == "manifest.json")
    timings = json.loads(client.fetch(manifest))["timings"]
    return JobTime(
        job_s=(job.finished_at - job.created_at).total_seconds(),
        waited_s=(job.started_at - job.created_at).total_seconds(),
        load_s=timings["load_s"],
        drag_s=timings["drag_s"],
        frames=ITERATIONS + 1,
        alone_s=alone(),
    )


def alone() -> float:
    (x, y), (u, v) = HANDLE, TARGET
    options = [part for name, value in OPTIONS.items() for part in ("--option", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as out:
        command = ["edit", "--seed", "3", "--point", f"{x},{y}:{u},{v}", *options, "--out", f"{out}/edit", "--json"]
        done = subprocess.run([sys.executable, "-P", "-m", "cli.main", *command], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["took_s"])


def median(times: list[JobTime], name: str) -> float:
    return statistics.median(float(getattr(time, name)) for time in times)
