"""The whole service under steady load: whether memory, a file, a thread, a connection, a row or an object leaks.

`python -m benchmarks.soak --minutes 60 --out runs/soak` starts its own servers on temporary data and submits small edits of every
kind, so that two cores are about half busy. soak_report says what is judged.
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
from collections.abc import Callable, Iterator, Sequence
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

from benchmarks.soak_report import GONE, Record, Sample, Tally, Usage, judge, load, load_tally
from cli.errors import CommandError
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
POLL_S = 0.5  # between two looks of the client
REST_LIMIT_S = 5.0  # of the client's rest after a job, which is as long as the job ran
SAMPLE_S = 10.0
SAMPLES = 60  # at least, in a short trial
OWN_SERVERS = ("DRAGQUEUE_DATABASE_URL", "DRAGQUEUE_REDIS_URL", "DRAGQUEUE_S3_ENDPOINT")

ROLES = {"PostgreSQL": "postgres", "Valkey": "valkey", "rclone S3": "rclone", "worker-0": "worker parent"}
TABLES = ("jobs", "artifacts", "attempts", "workers", "uploads")
Key = TypeVar("Key", int, str)

PLAN = (
    "drag", "masked", "photo", "stop", "drag", "go on", "cancel", "drag", "cancel at once", "drag", "go on", "drag",
)  # fmt: skip
DRAG: dict[str, Any] = {
    "model": "demo-faces",
    "drag": {"max_iterations": 20},
    "output": {"frames_every": 4, "animation": ["mp4"]},
    "retain_for_s": RETAIN_S,
}
WRONG: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("POST", "/v1/jobs", {"json": DRAG | {"source": {"seed": 1}, "model": "nobody"}}),
    ("POST", "/v1/jobs", {"json": DRAG | {"source": {"seed": -1}, "points": [{"handle": [1, 2]}]}}),
    ("POST", "/v1/jobs", {"content": b"{", "headers": {"content-type": "application/json"}}),
    ("POST", "/v1/uploads", {"content": b"no picture"}),
    ("GET", f"/v1/jobs/{UUID(int=1)}", {}),
)
PHOTOS = 3  # pictures uploaded again and again: uploads are kept for good


@dataclass
class Followed:
    """A job that the client still looks at."""

    id: str
    kind: str
    wished: bool = False


def count(seen: dict[Key, int], key: Key) -> None:
    seen[key] = seen.get(key, 0) + 1  # no Counter: asdict cannot copy one


class Customer:
    """One client that never has more than two jobs waiting, and rests about as long as they ran."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.tally = Tally()
        self.random = random.Random(0)
        self.plan = itertools.cycle(PLAN)
        self.wrong = itertools.cycle(WRONG)
        self.following: list[Followed] = []
        self.photos: list[bytes] = []
        self.last: str | None = None  # a job that has succeeded, kept
        self.last_until = 0.0  # surely until then
        self.rest_until = 0.0

    def turn(self, submit: bool = True) -> None:
        """Look at every job; when none is left and the rest is over, submit one or two."""
        for followed in list(self.following):
            self.look(followed)
        if submit and not self.following and time.monotonic() >= self.rest_until:
            for _ in range(self.random.choice((1, 1, 2))):
                self.submit(next(self.plan))
            self.misbehave()

    def ask(self, method: str, path: str, *, refused: bool = False, **options: Any) -> Any:
        """The answer's JSON, if it has one; an answer that was not expected is noted."""
        response = self.client.http.request(method, path, **options)
        count(self.tally.statuses, response.status_code)
        if response.is_success == refused or response.status_code >= 500:
            self.tally.troubles.append(f"{method} {path}: HTTP {response.status_code}: {response.text[:200]}")
        return response.json() if response.is_success else None

    def submit(self, kind: str) -> None:
        spec = DRAG | {"points": [self.point()], "source": {"seed": self.random.randrange(64)}}
        if kind == "masked":
            spec["movable"] = {"upload": self.upload(mask(), "?kind=mask")}
        if kind == "photo" and self.photos:
            spec["source"] = {"upload": self.upload(self.random.choice(self.photos))}
            spec["inversion"] = {"steps": 10, "tuning_steps": 5}
        if kind == "go on" and time.monotonic() < self.last_until:
            spec["source"] = {"job": self.last}
        job = self.ask("POST", "/v1/jobs", json=spec)
        if job is not None:
            count(self.tally.kinds, kind)
            self.following.append(Followed(job["id"], kind))

    def point(self) -> dict[str, list[int]]:
        x, y = self.random.randrange(50, 78), self.random.randrange(60, 90)
        return {"handle": [x, y], "target": [x + self.random.choice((-12, 12)), y]}

    def upload(self, data: bytes, query: str = "") -> str:
        return str((self.ask("POST", f"/v1/uploads{query}", content=data) or {}).get("sha256", "0" * 64))

    def misbehave(self) -> None:
        """Now and then ask for what there is not, and look at what operators look at."""
        if self.random.random() < 0.3:
            method, path, options = next(self.wrong)
            self.ask(method, path, refused=True, **options)
            for look in ("/readyz", "/v1/models", "/v1/jobs?limit=20"):
                self.ask("GET", look)

    def look(self, followed: Followed) -> None:
        answer = self.ask("GET", f"/v1/jobs/{followed.id}")
        job = None if answer is None else Job.model_validate(answer)
        if job is None or job.ended:
            self.following.remove(followed)
        if job is not None and job.ended:
            self.ended(job)
        elif job is not None and not followed.wished:
            self.wish(followed, (job.progress or {}).get("phase") == "drag")

    def wish(self, followed: Followed, dragging: bool) -> None:
        """Cancel or stop the jobs that are meant for it."""
        word, _, at_once = followed.kind.partition(" ")
        if word in ("cancel", "stop") and (dragging or at_once):
            followed.wished = True
            self.ask("POST", f"/v1/jobs/{followed.id}/{word}")

    def ended(self, job: Job) -> None:
        count(self.tally.states, job.state)
        if job.state not in ("succeeded", "canceled"):
            self.tally.troubles.append(f"job {job.id} ended {job.state}: {job.error}")
        if job.started_at is not None and job.finished_at is not None:
            ran_s = (job.finished_at - job.started_at).total_seconds()
            self.tally.ran_s += ran_s
            self.rest_until = max(self.rest_until, time.monotonic()) + min(ran_s, REST_LIMIT_S)
        if job.succeeded:
            self.last, self.last_until = str(job.id), time.monotonic() + RETAIN_S / 2
            if self.random.random() < 0.5 or not self.photos:
                self.download(job.id)

    def download(self, job_id: UUID) -> None:
        for artifact in self.client.artifacts(job_id):
            response = self.client.http.get(artifact.url, follow_redirects=True)
            count(self.tally.statuses, response.status_code)
            self.tally.downloaded_bytes += len(response.content)
            if hashlib.sha256(response.content).hexdigest() != artifact.sha256:
                self.tally.troubles.append(f"{artifact.url}: HTTP {response.status_code}, not the bytes that were stored")
            elif artifact.name == "result.png" and len(self.photos) < PHOTOS:
                self.photos.append(response.content)


def mask() -> bytes:
    image = Image.new("L", (128, 128))
    ImageDraw.Draw(image).ellipse((20, 24, 108, 112), fill=255)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class Sampler:
    """Looks at every process of a stack, its rows, messages and objects."""

    def __init__(self, stack: Stack, temporary: Path) -> None:
        settings = stack.settings()
        self.processes = {ROLES.get(child.name, child.name): psutil.Process(child.process.pid) for child in stack.children}
        self.sessions = make_sessions(settings.database_url)
        self.redis = redis.Redis.from_url(to_redis_py_url(settings.redis_url))
        self.bucket = stack.logs.parent / "s3" / settings.s3_bucket
        self.temporary = temporary

    def sample(self, at_s: float, loaded: bool) -> Sample:
        counts = self.rows() | self.messages() | self.objects()
        counts["temporary_files"] = sum(len(folders) + len(files) for _, folders, files in os.walk(self.temporary))
        return Sample(at_s=round(at_s, 2), loaded=loaded, processes=dict(self.usages()), counts=counts)

    def usages(self) -> Iterator[tuple[str, Usage]]:
        """What every process holds that lives; Run.step finds out about those that do not."""
        for role, process in self.processes.items():
            with suppress(psutil.NoSuchProcess):
                children = process.children()
                yield role, whole([process, *children]) if role == "postgres" else usage(process)
                if role == "worker parent" and children:
                    yield "worker child", usage(children[0])

    def rows(self) -> dict[str, float]:
        with self.sessions() as session:
            counts = {table: session.scalar(text(f"SELECT count(*) FROM {table}")) for table in TABLES}
            counts["database_connections"] = session.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid != pg_backend_pid()")
            )
            counts["database_mb"] = session.scalar(text("SELECT pg_database_size(current_database()) / 1e6"))
        return {name: float(count or 0) for name, count in counts.items()}

    def messages(self) -> dict[str, float]:
        length, keys = self.redis.llen(queue_name(DEFAULT_POOL)), self.redis.dbsize()
        return {"messages": float(str(length)), "redis_keys": float(str(keys))}

    def objects(self) -> dict[str, float]:
        """Files and folders of the bucket; rclone keeps a key's slashes as folders."""
        counts = {"job_objects": 0.0, "job_folders": 0.0, "upload_objects": 0.0}
        for folder, folders, files in os.walk(self.bucket):  # what is deleted background_thread is no error to it
            kind = Path(folder).relative_to(self.bucket).parts[2:3]  # behind t/TENANT
            if kind == ("j",):
                counts["job_folders"] += len(folders)
                counts["job_objects"] += len(files)
            elif kind == ("u",):
                counts["upload_objects"] += len(files)
        return counts


def usage(process: psutil.Process) -> Usage:
    with process.oneshot():
        return Usage(
            pid=process.pid, memory_bytes=process.memory_info().rss, files=process.num_fds(), threads=process.num_threads(),
            connections=len(process.net_connections("all")),
        )  # fmt: skip


def whole(processes: Sequence[psutil.Process]) -> Usage:
    """A server that is many processes, as one."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # a backend that has just ended
            memory = process.memory_info()
            found.append((memory.rss - memory.shared, process.num_fds(), 1, len(process.net_connections("all"))))
    memory_bytes, files, threads, connections = map(sum, zip(*found, strict=True))
    pid = processes[0].pid
    return Usage(pid=pid, memory_bytes=memory_bytes, files=files, threads=threads, connections=connections)


def soak(minutes: float, record: Record, tally: Callable[[Tally], object], console: Console) -> None:
    """Load the service for so long, then let it come to rest. Raises CommandError, KeyboardInterrupt."""
    with temporary_folder() as temporary:
        kept = {name: value for name, value in os.environ.items() if name not in OWN_SERVERS}
        environment = {"DRAGQUEUE_THREADS": "1"} | kept | {"TMPDIR": str(temporary), "DRAGQUEUE_TIDY_AFTER_S": str(TIDY_AFTER_S)}
        with local_stack(environment=environment) as stack, running_service(stack) as service, service.client() as client:
            queue_without_a_message(stack.settings())
            customer = Customer(client)
            tally(customer.tally)
            console.print(
                f"the service answers on {service.url}; temporary data in {stack.logs.parent}", highlight=False, soft_wrap=True
            )
            Run(stack, customer, Sampler(stack, temporary), record, console).run(60 * minutes)


def queue_without_a_message(settings: Settings) -> None:
    """So that the reconciler sends one, and has opened all that it ever opens long before anything is judged."""
    sessions = make_sessions(settings.database_url)
    submission = check_submission(DRAG | {"source": {"seed": 1}}, ModelManifest.load(settings.checkpoints))
    with sessions.begin() as session:
        jobs.add(session, uuid4(), DEFAULT_TENANT, submission)
    sessions.kw["bind"].dispose()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Where the processes put what they do not need for long: nothing else is in it."""
    with tempfile.TemporaryDirectory(prefix="dragqueue-soak-") as folder:
        yield Path(folder)


class Run:
    def __init__(self, stack: Stack, customer: Customer, sampler: Sampler, record: Record, console: Console) -> None:
        self.stack = stack
        self.customer = customer
        self.sampler = sampler
        self.record = record
        self.console = console
        self.began = time.monotonic()
        self.next_sample = 0.0

    def run(self, load_s: float) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[seen]}"), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task("load", total=load_s, seen="")
            every_s = min(SAMPLE_S, load_s / SAMPLES)
            while (now := self.now()) < load_s:
                self.step(every_s, loaded=True)
                bar.update(task, completed=now, seen=self.seen())
            bar.update(task, completed=load_s, description="rest")
            while self.now() < load_s + RETAIN_S + EMPTY_LIMIT_S and not self.is_empty():
                self.step(every_s, loaded=False)
                bar.update(task, seen=self.seen())
        self.record.add(self.sampler.sample(self.now(), loaded=False))

    def now(self) -> float:
        return time.monotonic() - self.began

    def step(self, every_s: float, loaded: bool) -> None:
        self.stack.check()
        self.customer.turn(submit=loaded)
        if self.now() >= self.next_sample:
            self.next_sample = self.now() + every_s
            self.record.add(self.sampler.sample(self.now(), loaded))
        time.sleep(POLL_S)

    def is_empty(self) -> bool:
        return not self.record.samples[-1].loaded and not any(self.record.samples[-1].counts[name] for name in GONE)

    def seen(self) -> str:
        latest = self.record.samples[-1]
        child = latest.processes.get("worker child")
        megabytes = 0 if child is None else child.memory_bytes / 1e6
        return f"{sum(self.customer.tally.states.values())} jobs ended, worker child {megabytes:.0f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="of load; the rest afterwards takes one or two more")
    parser.add_argument("--out", type=Path, default=Path("runs/soak"), help="folder for samples, summary and plot")
    parser.add_argument("--judge", action="store_true", help="run nothing: judge the samples that are in the folder so far")
    options = parser.parse_args()
    console = Console(stderr=True)
    if options.judge:
        samples = load(options.out)
        complete = bool(samples) and not samples[-1].loaded
        sys.exit(judge(samples, load_tally(options.out), complete, options.out, console))
    stop_on_signals()
    record, tallies, complete = Record(options.out), [Tally()], False
    try:
        soak(options.minutes, record, tallies.append, console)
        complete = True
    except KeyboardInterrupt:
        console.print("interrupted: what there is so far is judged")
    except (CommandError, SQLAlchemyError, redis.RedisError) as error:
        tallies[-1].troubles.append(str(error))
    sys.exit(judge(record.samples, tallies[-1], complete, options.out, console))


if __name__ == "__main__":
    main()
