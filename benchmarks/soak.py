"""Runs the whole service under steady load, to see whether memory, files, threads, connections, rows or objects leak.

`python -m benchmarks.soak --minutes 60 --out runs/soak` starts its own servers on temporary data and submits small edits of every
kind, so that two cores are about half busy. soak_report tells what counts as a leak.
"""

import argparse
import hashlib
import io
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psutil
import redis
from dragqueue_client import Client, Job
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.soak_report import GONE, ClientRecord, Sample, SampleFile, Usage, load_client_record, load_samples, write_report
from embedded.errors import StackError
from embedded.service import running_service
from embedded.stack import Stack, local_stack, stop_on_signals
from jobs.database import make_sessions
from jobs.models.manifest import ModelManifest
from jobs.queue import jobs
from jobs.queue.broker import queue_name, to_redis_py_url
from jobs.settings import Settings
from jobs.spec.validation import check_submission
from jobs.tables import DEFAULT_POOL, DEFAULT_TENANT

RETAIN_S = 60  # the shortest that a job may ask for
TIDY_AFTER_S = 20.0  # before that, so that jobs are tidied and then forgotten
EMPTY_LIMIT_S = 60.0  # for the reconciler to delete the last jobs, once their retention is over
POLL_S = 0.5
REST_LIMIT_S = 5.0  # the client rests after a job for as long as it ran, but not longer
SAMPLE_INTERVAL_S = 10.0
LEAST_SAMPLES = 60  # of a short load
OWN_SERVERS = ("DRAGQUEUE_DATABASE_URL", "DRAGQUEUE_REDIS_URL", "DRAGQUEUE_S3_ENDPOINT")

ROLES = {"PostgreSQL": "postgres", "Valkey": "valkey", "rclone S3": "rclone", "worker-0": "worker parent"}
TABLES = ("jobs", "artifacts", "attempts", "workers", "uploads")
Key = TypeVar("Key", int, str)

JOB_KINDS = (
    "drag", "masked", "photo", "stop", "drag", "go on", "cancel", "drag", "cancel at once", "drag", "go on", "drag",
)  # fmt: skip
DRAG: dict[str, Any] = {
    "model": "demo-faces",
    "drag": {"max_iterations": 20},
    "output": {"frames_every": 4, "animation": ["mp4"]},
    "retain_for_s": RETAIN_S,
}
WRONG_REQUESTS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("POST", "/v1/jobs", {"json": DRAG | {"source": {"seed": 1}, "model": "nobody"}}),
    ("POST", "/v1/jobs", {"json": DRAG | {"source": {"seed": -1}, "points": [{"handle": [1, 2]}]}}),
    ("POST", "/v1/jobs", {"content": b"{", "headers": {"content-type": "application/json"}}),
    ("POST", "/v1/uploads", {"content": b"no picture"}),
    ("GET", f"/v1/jobs/{UUID(int=1)}", {}),
)
MOST_PHOTOS = 3  # uploaded again and again: uploads are kept for good


@dataclass
class PolledJob:
    """A job that the client still polls."""

    id: str
    kind: str
    canceled_or_stopped: bool = False  # by the client


def count(counts: dict[Key, int], key: Key) -> None:
    """Count one more of a key; a Counter would not do, since asdict cannot copy one."""
    counts[key] = counts.get(key, 0) + 1


class SteadyClient:
    """A client that never has more than two jobs waiting, and rests about as long as they ran."""

    def __init__(self, client: Client, record: ClientRecord) -> None:
        self.client = client
        self.record = record
        self.random = random.Random(0)
        self.kinds = itertools.cycle(JOB_KINDS)
        self.wrong_requests = itertools.cycle(WRONG_REQUESTS)
        self.polled_jobs: list[PolledJob] = []
        self.photos: list[bytes] = []
        self.parent: str | None = None  # the last job that has succeeded
        self.parent_until = 0.0  # it is surely retained until then
        self.rest_until = 0.0

    def poll(self, submit: bool = True) -> None:
        """Poll every job; when none is left and the rest is over, submit one or two."""
        for polled in list(self.polled_jobs):
            self.poll_job(polled)
        if submit and not self.polled_jobs and time.monotonic() >= self.rest_until:
            for _ in range(self.random.choice((1, 1, 2))):
                self.submit(next(self.kinds))
            self.send_unusual_requests()

    def request(self, method: str, path: str, *, refused: bool = False, **options: Any) -> Any:
        """Send a request and return the JSON of a success; note an answer that was not expected as trouble."""
        response = self.client.http.request(method, path, **options)
        count(self.record.statuses, response.status_code)
        if response.is_success == refused or response.status_code >= 500:
            self.record.troubles.append(f"{method} {path}: HTTP {response.status_code}: {response.text[:200]}")
        return response.json() if response.is_success else None

    def submit(self, kind: str) -> None:
        """Submit a job of a kind."""
        spec = DRAG | {"points": [self.random_point()], "source": {"seed": self.random.randrange(64)}}
        if kind == "masked":
            spec["movable"] = {"upload": self.upload(draw_mask(), "?kind=mask")}
        if kind == "photo" and self.photos:
            spec["source"] = {"upload": self.upload(self.random.choice(self.photos))}
            spec["inversion"] = {"steps": 10, "tuning_steps": 5}
        if kind == "go on" and time.monotonic() < self.parent_until:
            spec["source"] = {"job": self.parent}
        job = self.request("POST", "/v1/jobs", json=spec)
        if job is not None:
            count(self.record.kinds, kind)
            self.polled_jobs.append(PolledJob(job["id"], kind))

    def random_point(self) -> dict[str, list[int]]:
        """Return a handle and a target beside it."""
        x, y = self.random.randrange(50, 78), self.random.randrange(60, 90)
        return {"handle": [x, y], "target": [x + self.random.choice((-12, 12)), y]}

    def upload(self, data: bytes, query: str = "") -> str:
        """Upload a picture and return its hash; zeros if it was refused."""
        return str((self.request("POST", f"/v1/uploads{query}", content=data) or {}).get("sha256", "0" * 64))

    def send_unusual_requests(self) -> None:
        """Send a wrong request now and then, and those of operators."""
        if self.random.random() < 0.3:
            method, path, options = next(self.wrong_requests)
            self.request(method, path, refused=True, **options)
            for path_of_operators in ("/readyz", "/v1/models", "/v1/jobs?limit=20"):
                self.request("GET", path_of_operators)

    def poll_job(self, polled: PolledJob) -> None:
        """Poll one job; note its end, or cancel or stop it."""
        answer = self.request("GET", f"/v1/jobs/{polled.id}")
        job = None if answer is None else Job.model_validate(answer)
        if job is None or job.ended:
            self.polled_jobs.remove(polled)
        if job is not None and job.ended:
            self.note_end(job)
        elif job is not None and not polled.canceled_or_stopped:
            self.cancel_or_stop(polled, (job.progress or {}).get("phase") == "drag")

    def cancel_or_stop(self, polled: PolledJob, dragging: bool) -> None:
        """Cancel or stop a job of a kind that is meant for it."""
        action, _, at_once = polled.kind.partition(" ")
        if action in ("cancel", "stop") and (dragging or at_once):
            polled.canceled_or_stopped = True
            self.request("POST", f"/v1/jobs/{polled.id}/{action}")

    def note_end(self, job: Job) -> None:
        """Count an ended job, begin the rest, download the results of some."""
        count(self.record.states, job.state)
        if job.state not in ("succeeded", "canceled"):
            self.record.troubles.append(f"job {job.id} ended {job.state}: {job.error}")
        if job.started_at is not None and job.finished_at is not None:
            ran_s = (job.finished_at - job.started_at).total_seconds()
            self.record.ran_s += ran_s
            self.rest_until = max(self.rest_until, time.monotonic()) + min(ran_s, REST_LIMIT_S)
        if job.succeeded:
            self.parent, self.parent_until = str(job.id), time.monotonic() + RETAIN_S / 2
            if self.random.random() < 0.5 or not self.photos:
                self.download(job.id)

    def download(self, job_id: UUID) -> None:
        """Download every artifact and compare its hash."""
        for artifact in self.client.artifacts(job_id):
            response = self.client.http.get(artifact.url, follow_redirects=True)
            count(self.record.statuses, response.status_code)
            self.record.downloaded_bytes += len(response.content)
            if hashlib.sha256(response.content).hexdigest() != artifact.sha256:
                self.record.troubles.append(f"{artifact.url}: HTTP {response.status_code}, not the bytes that were stored")
            elif artifact.name == "result.png" and len(self.photos) < MOST_PHOTOS:
                self.photos.append(response.content)


def draw_mask() -> bytes:
    """Return an elliptical mask as PNG."""
    image = Image.new("L", (128, 128))
    ImageDraw.Draw(image).ellipse((20, 24, 108, 112), fill=255)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Sampler:
    """Samples every process of a stack, its rows, messages and objects."""

    def __init__(self, stack: Stack, temporary: Path) -> None:
        settings = stack.settings()
        self.processes = {ROLES.get(child.name, child.name): psutil.Process(child.process.pid) for child in stack.children}
        self.sessions = make_sessions(settings.database_url)
        self.redis = redis.Redis.from_url(to_redis_py_url(settings.redis_url))
        self.bucket = stack.logs.parent / "s3" / settings.s3_bucket
        self.temporary = temporary

    def sample(self, at_s: float, loaded: bool) -> Sample:
        """Take one sample."""
        counts = self.rows() | self.messages() | self.objects()
        counts["temporary_files"] = sum(len(folders) + len(files) for _, folders, files in os.walk(self.temporary))
        return Sample(at_s=round(at_s, 2), loaded=loaded, processes=dict(self.usages()), counts=counts)

    def usages(self) -> Iterator[tuple[str, Usage]]:
        """Yield role and resources of every process that lives; SoakRun.step raises for one that has ended."""
        for role, process in self.processes.items():
            with suppress(psutil.NoSuchProcess):
                children = process.children()
                yield role, server_usage([process, *children]) if role == "postgres" else process_usage(process)
                if role == "worker parent" and children:
                    yield "worker child", process_usage(children[0])

    def rows(self) -> dict[str, float]:
        """Count rows and connections."""
        with self.sessions() as session:
            counts = {table: session.scalar(text(f"SELECT count(*) FROM {table}")) for table in TABLES}
            counts["database_connections"] = session.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid != pg_backend_pid()")
            )
            counts["database_mb"] = session.scalar(text("SELECT pg_database_size(current_database()) / 1e6"))
        return {name: float(count or 0) for name, count in counts.items()}

    def messages(self) -> dict[str, float]:
        """Count messages and keys of the broker."""
        length, keys = self.redis.llen(queue_name(DEFAULT_POOL)), self.redis.dbsize()
        return {"messages": float(str(length)), "redis_keys": float(str(keys))}

    def objects(self) -> dict[str, float]:
        """Count files and folders of the bucket; rclone stores the parts of a key as folders."""
        counts = {"job_objects": 0.0, "job_folders": 0.0, "upload_objects": 0.0}
        for folder, folders, files in os.walk(self.bucket):  # a folder that is deleted meanwhile raises nothing
            kind = Path(folder).relative_to(self.bucket).parts[2:3]  # behind t/TENANT
            if kind == ("j",):
                counts["job_folders"] += len(folders)
                counts["job_objects"] += len(files)
            elif kind == ("u",):
                counts["upload_objects"] += len(files)
        return counts


def process_usage(process: psutil.Process) -> Usage:
    """Return the resources of one process."""
    with process.oneshot():
        return Usage(
            pid=process.pid, memory_bytes=process.memory_info().rss, files=process.num_fds(), threads=process.num_threads(),
            connections=len(process.net_connections("all")),
        )  # fmt: skip


def server_usage(processes: Sequence[psutil.Process]) -> Usage:
    """Return the resources of a server that is many processes."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a backend that has just ended
            memory = process.memory_info()
            found.append((memory.rss - memory.shared, process.num_fds(), 1, len(process.net_connections("all"))))
    memory_bytes, files, threads, connections = map(sum, zip(*found, strict=True))
    pid = processes[0].pid
    return Usage(pid=pid, memory_bytes=memory_bytes, files=files, threads=threads, connections=connections)


def soak(minutes: float, rest: bool, samples: SampleFile, record: ClientRecord, console: Console) -> None:
    """Load the service for so long; then wait until every retention is over, unless `rest` is False.

    Raises:
        StackError: a process has ended.
        KeyboardInterrupt: somebody has interrupted the run.
    """
    with temporary_folder() as temporary:
        kept = {name: value for name, value in os.environ.items() if name not in OWN_SERVERS}
        environment = {"DRAGQUEUE_THREADS": "1"} | kept | {"TMPDIR": str(temporary), "DRAGQUEUE_TIDY_AFTER_S": str(TIDY_AFTER_S)}
        with (
            local_stack(environment=environment) as stack,
            running_service(stack) as service,
            Client(service.url, service.key) as client,
        ):
            queue_job_without_message(stack.settings())
            steady_client = SteadyClient(client, record)
            console.print(
                f"the service answers on {service.url}; temporary data in {stack.logs.parent}", highlight=False, soft_wrap=True
            )
            SoakRun(stack, steady_client, Sampler(stack, temporary), samples, console).run(60 * minutes, rest)


def queue_job_without_message(settings: Settings) -> None:
    """Queue a job so that the reconciler sends its message, and has opened all its connections before anything is measured."""
    sessions = make_sessions(settings.database_url)
    submission = check_submission(DRAG | {"source": {"seed": 1}}, ModelManifest.load(settings.checkpoints))
    with sessions.begin() as session:
        jobs.add(session, uuid4(), DEFAULT_TENANT, submission)
    sessions.kw["bind"].dispose()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make a folder for the processes' temporary files alone."""
    with tempfile.TemporaryDirectory(prefix="dragqueue-soak-") as folder:
        yield Path(folder)


class SoakRun:
    """One run: the load, then the wait for every retention to be over."""

    def __init__(self, stack: Stack, client: SteadyClient, sampler: Sampler, samples: SampleFile, console: Console) -> None:
        self.stack = stack
        self.client = client
        self.sampler = sampler
        self.samples = samples
        self.console = console
        self.began = time.monotonic()
        self.next_sample = 0.0

    def run(self, load_s: float, rest: bool) -> None:
        """Load the service, then wait until it is empty, unless `rest` is False."""
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("load", total=load_s, status="")
            every_s = min(SAMPLE_INTERVAL_S, load_s / LEAST_SAMPLES)
            while (now := self.now()) < load_s:
                self.step(every_s, loaded=True)
                bar.update(task, completed=now, status=self.status())
            bar.update(task, completed=load_s, description="rest")
            while rest and self.now() < load_s + RETAIN_S + EMPTY_LIMIT_S and not self.is_empty():
                self.step(every_s, loaded=False)
                bar.update(task, status=self.status())
        if rest:
            self.samples.add(self.sampler.sample(self.now(), loaded=False))

    def now(self) -> float:
        """Return the seconds since the load began."""
        return time.monotonic() - self.began

    def step(self, every_s: float, loaded: bool) -> None:
        """Let the client poll once, and take a sample if it is due. Raises StackError."""
        self.stack.check()
        self.client.poll(submit=loaded)
        if self.now() >= self.next_sample:
            self.next_sample = self.now() + every_s
            self.samples.add(self.sampler.sample(self.now(), loaded))
        time.sleep(POLL_S)

    def is_empty(self) -> bool:
        """Return whether nothing was left at the last sample of the rest."""
        latest = self.samples.samples[-1]
        return not latest.loaded and not any(latest.counts[name] for name in GONE)

    def status(self) -> str:
        """Return the text beside the progress bar."""
        latest = self.samples.samples[-1]
        child = latest.processes.get("worker child")
        megabytes = 0 if child is None else child.memory_bytes / 1e6
        return f"{sum(self.client.record.states.values())} jobs ended, worker child {megabytes:.0f} MB"


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0, help="of load; the rest afterwards takes one or two more")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder for samples, summary and plot")
    parser.add_argument("--judge", action="store_true", help="run nothing: judge the samples that are in the folder so far")
    parser.add_argument("--load-only", action="store_true", help="end with the load: what is left afterwards is not judged")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak, or judge the samples of an earlier one; return the exit code."""
    options = make_parser().parse_args(arguments)
    console = Console(stderr=True)
    if options.judge:
        samples = load_samples(options.out)
        complete = bool(samples) and not samples[-1].loaded
        return write_report(samples, load_client_record(options.out), complete, options.out, console)
    stop_on_signals()
    file, record, complete = SampleFile(options.out), ClientRecord(), False
    try:
        soak(options.minutes, not options.load_only, file, record, console)
        complete = not options.load_only
    except KeyboardInterrupt:
        console.print("interrupted: what there is so far is judged")
    except (StackError, SQLAlchemyError, redis.RedisError) as error:
        record.troubles.append(str(error))
    return write_report(file.samples, record, complete, options.out, console)


if __name__ == "__main__":
    sys.exit(main())
