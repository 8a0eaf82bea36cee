"""Injects faults into the running service, then checks every job: `python -m benchmarks.chaos`."""

import argparse
import io
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx2
import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.chaos.faults import Fault, FaultInjector, RunningJobs
from benchmarks.chaos.report import ChaosReport, ServiceSample, check_service
from benchmarks.chaos.supervised_service import QUICK, SupervisedService, running_service
from benchmarks.faces.factors import Z_DIM, factors_of
from benchmarks.faces.renderer import render
from engine.networks.stylegan2 import to_pixels
from jobs.database import make_sessions
from jobs.states import JobState
from jobs.storage.objects import Storage
from jobs.tables import Job
from worker.reconciler.purge import Purger

SAMPLE_INTERVAL_S = 0.05
WIDTH = 130  # characters
FAULT_INTERVAL_S = (0.4, 1.6)
MOST_UNFINISHED = 10  # jobs
REACTION_S = 2.0  # a job that lost its worker is claimed after at most a lease, a sweep and this
LIMIT_S = 300.0  # for the last jobs to end once nothing is broken any more
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
TEMPLATES: dict[str, dict[str, Any]] = {
    "turn": {"source": {"seed": 3}, "points": [{"handle": [75, 80], "target": [59, 80]}], "drag": {"max_iterations": 12}},
    "mask": {
        "source": {"seed": 5}, "points": [{"handle": [64, 90], "target": [64, 98]}], "drag": {"max_iterations": 10},
        "movable": {"shapes": [{"circle": [64, 80, 40]}]}, "output": {"animation": ["gif"], "frames_every": 2},
    },
    "draw": {"source": {"seed": 9}},
    "photo": {
        "inversion": {"steps": 6, "tuning_steps": 3}, "points": [{"handle": [75, 80], "target": [69, 80]}],
        "drag": {"max_iterations": 6},
    },
}  # fmt: skip
console = Console(stderr=True)


@dataclass
class ChaosLog:
    """Everything that happened in a run."""

    accepted: dict[UUID, str] = field(default_factory=dict)  # job: its template
    faults: list[Fault] = field(default_factory=list)
    samples: list[ServiceSample] = field(default_factory=list)


class ChaosRun:
    """One run; everything happens in one thread, between two samples of the service."""

    def __init__(self, service: SupervisedService, jobs: int, faults: int, seed: int) -> None:
        self.service = service
        self.jobs = jobs
        self.fault_count = faults
        self.random = random.Random(seed)
        self.injector = FaultInjector(service, seed)
        self.sessions = make_sessions(service.stack.settings().database_url)
        self.http = httpx2.Client(base_url=service.url, timeout=2, headers={"Authorization": f"Bearer {service.key}"})
        self.photo = draw_photo()
        self.log = ChaosLog()
        self.running: RunningJobs = {}
        self.unfinished = 0
        self.ended = 0
        self.next_fault = time.monotonic()

    def run(self, bar: Progress) -> ChaosLog:
        """Run until all faults have happened and all jobs have ended. Raises TimeoutError."""
        tasks = {name: bar.add_task(name, total=total) for name, total in (("jobs", self.jobs), ("faults", self.fault_count))}
        quiet_since: float | None = None
        while self.ended < self.jobs or len(self.log.faults) < self.fault_count or self.unfinished:
            self.sample_service()
            if len(self.log.faults) < self.fault_count:
                self.inject_fault_when_due()
            elif quiet_since is None or self.more_jobs:
                quiet_since = time.monotonic()
                self.service.mend()
            elif time.monotonic() - quiet_since > LIMIT_S:
                raise TimeoutError(f"{self.unfinished} jobs had not ended {LIMIT_S:g} s after the last fault and submission")
            if self.unfinished < MOST_UNFINISHED and (self.more_jobs or len(self.log.faults) < self.fault_count):
                self.submit()
            bar.update(tasks["jobs"], completed=self.ended, total=max(self.jobs, len(self.log.accepted)))
            bar.update(tasks["faults"], completed=len(self.log.faults))
            time.sleep(SAMPLE_INTERVAL_S)
        return self.log

    def close(self) -> None:
        """Close the connections."""
        self.http.close()
        self.sessions.kw["bind"].dispose()
        self.injector.broker.redis.close()

    @property
    def more_jobs(self) -> bool:
        """Return whether more jobs are to be submitted."""
        return len(self.log.accepted) < self.jobs

    def sample_service(self) -> None:
        """Supervise the processes, sample the service, count the jobs."""
        self.service.supervise()
        workers = frozenset(pid for one in self.service.workers.values() if one.is_up() and (pid := one.child_pid()))
        self.log.samples.append(ServiceSample(time.time(), self.service.servers_up(), workers))
        try:
            with self.sessions() as session:
                rows = session.execute(select(Job.id, Job.attempt, Job.worker).where(Job.state == JobState.RUNNING)).all()
                counts = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
        except SQLAlchemyError:
            return  # the database is down
        self.running = {row.id: (row.attempt, row.worker or ":0") for row in rows}
        self.unfinished = counts.get(JobState.QUEUED, 0) + counts.get(JobState.RUNNING, 0)
        self.ended = sum(counts.values()) - self.unfinished

    def inject_fault_when_due(self) -> None:
        """Inject the next fault if its time has come."""
        if time.monotonic() < self.next_fault or not self.running:  # a fault of an idle service proves little
            return
        fault = self.injector.inject(self.running)
        if fault is not None:
            self.log.faults.append(fault)
            self.next_fault = time.monotonic() + self.random.uniform(*FAULT_INTERVAL_S)

    def submit(self) -> None:
        """Submit one job; it counts as accepted once it is answered 202, whatever happens to the service afterwards."""
        name = self.random.choice(list(TEMPLATES))
        files = {"job": json.dumps({"model": "demo-faces"} | TEMPLATES[name]).encode()}
        try:
            answer = self.http.post("/v1/jobs", files=files | ({"image": self.photo} if name == "photo" else {}))
        except httpx2.HTTPError:
            return
        if answer.status_code == 202:
            self.log.accepted[UUID(answer.json()["id"])] = name


def draw_photo() -> bytes:
    """Return a drawn face as PNG, in place of a photo."""
    out = io.BytesIO()
    pixels = to_pixels(render(factors_of(torch.zeros(1, Z_DIM), psi=0.7), 128).images)[0]
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def measure(jobs: int, workers: int, slots: int, faults: int, seed: int, logs: Path) -> ChaosReport:
    """Run the service, inject faults, check everything.

    Args:
        slots: of each worker.
        logs: where the processes' logs go; must not exist.
    """
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL runs as another user where we are root
        try:
            with running_service(Path(folder) / "state", workers, slots) as service:
                return run_and_check(ChaosRun(service, jobs, faults, seed), same_bytes=slots == 1)
        finally:
            shutil.copytree(Path(folder) / "state" / "logs", logs)


def run_and_check(chaos: ChaosRun, *, same_bytes: bool) -> ChaosReport:
    """Inject the faults, let every job end, purge what is left over, check."""
    try:
        with Progress(*BAR, console=console) as bar:
            log = chaos.run(bar)
        chaos.service.stop()
        storage = Storage.from_settings(chaos.service.stack.settings())
        everything = Purger(chaos.sessions, storage, tidy_after_s=0, upload_retain_s=3600)
        while everything.purge().tidied:
            pass
        allowed_s = float(QUICK["LEASE_S"]) + float(QUICK["SWEEP_S"]) + REACTION_S
        found = log.faults, log.samples, log.accepted
        return check_service(chaos.sessions, storage, *found, allowed_s, same_bytes=same_bytes)
    finally:
        chaos.close()


def print_report(report: ChaosReport) -> None:
    """Print a table of the faults' effects, then the problems."""
    table = Table(title=f"{report.jobs} jobs in {report.attempts} attempts: {report.endings}")
    for title in ("fault", "times", "jobs that ran there", "went on", "taken up by another attempt", "longest idle wait, s"):
        table.add_column(title, justify="left" if title == "fault" else "right")
    for line in report.lines:
        numbers = (line.faults, line.hit, line.went_on, line.taken_up)
        table.add_row(line.kind, *map(str, numbers), f"{line.longest_wait_s:.1f}")
    Console(width=WIDTH).print(table)
    for problem in report.problems + report.late:
        console.print(problem, style="red", highlight=False)


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--slots", type=int, default=1, help="of each worker; with several, bytes are not compared")
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, write chaos.json, print the report; return the exit code."""
    given = make_parser().parse_args(arguments)
    console.print(f"seed {given.seed}", highlight=False)
    shutil.rmtree(given.out / "logs", ignore_errors=True)
    report = measure(given.jobs, given.workers, given.slots, given.faults, given.seed, given.out / "logs")
    (given.out / "chaos.json").write_text(json.dumps(vars(given) | {"out": str(given.out)} | asdict(report), indent=1))
    print_report(report)
    return 1 if report.problems or report.late else 0


if __name__ == "__main__":
    sys.exit(main())
