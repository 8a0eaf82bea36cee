"""Measures what the service adds to an edit: jobs of a warm worker beside the same edit by the command line."""

import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dragqueue_client import Client, Job

from benchmarks.child_programs import checkout_environment, module_command
from embedded.service import running_service
from embedded.stack import local_stack

HANDLE, TARGET = (75, 80), (30, 40)  # too far away to be reached
ALLOWED_S, ALLOWED_PER_FRAME_S = 0.5, 0.003  # that a job may take longer than the edit alone
JOB_LIMIT_S = 300


@dataclass(frozen=True, kw_only=True)
class JobTime:
    """The seconds of one job, and of the same edit by the command line."""

    job_s: float  # from its acceptance to its end
    waited_s: float  # of that, until it started
    load_s: float
    drag_s: float  # with the frames that are drawn and sent beside it
    frames: int
    alone_s: float  # of the command line, from the model loaded to the last file written

    @property
    def rest_s(self) -> float:
        """Return the time of overlay, animation, the last uploads and rows."""
        return self.job_s - self.waited_s - self.load_s - self.drag_s

    @property
    def allowed_s(self) -> float:
        """Return the time that the job should not exceed."""
        return self.alone_s + ALLOWED_S + ALLOWED_PER_FRAME_S * self.frames


def measure_jobs(count: int, iterations: int, report_job: Callable[[], None]) -> list[JobTime]:
    """Run jobs of so many iterations on a warm worker, and the same edit by the command line after each."""
    options = {"max_iterations": iterations, "stop_distance": 0.1}
    with local_stack() as stack, running_service(stack, workers=1) as service, Client(service.url, service.key) as client:
        run_job(client, options)  # warms the worker
        times = []
        for _ in range(count):
            times.append(measure_job(client, options))
            report_job()
    return times


def run_job(client: Client, options: dict[str, Any]) -> Job:
    """Submit a job with these drag options and wait until it has ended."""
    points = [{"handle": HANDLE, "target": TARGET}]
    document = {"model": "demo-faces", "source": {"seed": 3}, "points": points, "drag": options}
    return client.wait(client.submit(document).id, timeout_s=JOB_LIMIT_S)


def measure_job(client: Client, options: dict[str, Any]) -> JobTime:
    """Measure one job, then the same edit by the command line."""
    job = run_job(client, options)
    assert job.started_at is not None
    assert job.finished_at is not None
    manifest = next(artifact for artifact in client.artifacts(job.id) if artifact.name == "manifest.json")
    timings = json.loads(client.fetch(manifest))["timings"]
    return JobTime(
        job_s=(job.finished_at - job.created_at).total_seconds(),
        waited_s=(job.started_at - job.created_at).total_seconds(),
        load_s=timings["load_s"],
        drag_s=timings["drag_s"],
        frames=options["max_iterations"] + 1,
        alone_s=measure_edit_alone(options),
    )


def measure_edit_alone(options: dict[str, Any]) -> float:
    """Return the seconds that `dragqueue edit` reports for the same edit."""
    (x, y), (u, v) = HANDLE, TARGET
    given = [part for name, value in options.items() for part in ("--option", f"{name}={value}")]
    with tempfile.TemporaryDirectory() as out:
        arguments = ["edit", "--seed", "3", "--point", f"{x},{y}:{u},{v}", *given, "--out", f"{out}/edit", "--json"]
        command = module_command("cli.main", *arguments)
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=checkout_environment())
    return float(json.loads(done.stdout)["took_s"])


def median(times: list[JobTime], name: str) -> float:
    """Return the median of one of the fields or properties of JobTime."""
    return statistics.median(float(getattr(time, name)) for time in times)
