"""Checks every job, object and wait after the faults, and counts what each kind of fault did."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID

from benchmarks.chaos.faults import Fault, pid_of
from jobs.database import Sessions
from jobs.states import Ending, JobState
from jobs.storage.objects import Storage, upload_key
from jobs.tables import Artifact, Attempt, Job, Upload


@dataclass(frozen=True)
class ServiceSample:
    """The state of the service at one time."""

    at: float  # time.time()
    servers_up: bool
    workers: frozenset[int]  # process ids of the children that may compute


@dataclass(frozen=True)
class AttemptRun:
    """One attempt; times are the database's."""

    job: UUID
    attempt: int
    pid: int
    began: float
    ended: float
    ending: str


@dataclass
class FaultEffects:
    """What all faults of one kind did."""

    kind: str
    faults: int = 0
    hit: int = 0  # jobs that ran where it happened
    went_on: int = 0  # of them: continued in the same attempt
    taken_up: int = 0  # of them: continued by another attempt
    longest_wait_s: float = 0.0  # of those, while an idle worker and all servers were up


@dataclass
class ChaosReport:
    """The outcome of a run."""

    jobs: int
    attempts: int
    endings: dict[str, int]
    lines: list[FaultEffects]
    problems: list[str] = field(default_factory=list)  # jobs, results and objects that are not as they must be
    late: list[str] = field(default_factory=list)  # jobs that waited longer than they should


def check_service(
    sessions: Sessions, storage: Storage, faults: Sequence[Fault], samples: Sequence[ServiceSample], accepted: dict[UUID, str],
    allowed_wait_s: float, *, same_bytes: bool,
) -> ChaosReport:  # fmt: skip
    """Check the service once all jobs have ended and everything is purged.

    Args:
        accepted: jobs that the API has answered for, and which of the templates each is.
        same_bytes: whether the same edit must have the same results to the byte, as it must where each job runs alone.
    """
    with sessions() as session:
        jobs, artifacts = session.query(Job).all(), session.query(Artifact).all()
        uploads = session.query(Upload).all()
        runs = [read_attempt(row) for row in session.query(Attempt).all()]
    endings = Counter(run.ending for run in runs)
    lines = [count_effects(kind, faults, runs, samples) for kind in dict.fromkeys(fault.kind for fault in faults)]
    report = ChaosReport(len(jobs), len(runs), dict(endings), lines)
    report.problems += job_problems(jobs, runs, accepted)
    report.problems += object_problems(storage, artifacts, {upload_key(row.tenant, row.sha256) for row in uploads})
    if same_bytes:
        report.problems += result_problems(artifacts, accepted)
    late = [line for line in lines if line.longest_wait_s > allowed_wait_s]
    report.problems += [f"{line.kind}: a job waited {line.longest_wait_s:.1f} s, allowed {allowed_wait_s:.1f} s" for line in late]
    return report


def read_attempt(row: Attempt) -> AttemptRun:
    """Return the run of an attempt's row."""
    ended = row.ended_at.timestamp() if row.ended_at else float("inf")
    return AttemptRun(row.job_id, row.attempt, pid_of(row.worker), row.began_at.timestamp(), ended, row.ending or "never")


def job_problems(jobs: Sequence[Job], runs: Sequence[AttemptRun], accepted: dict[UUID, str]) -> list[str]:
    """Return what is wrong with jobs and attempts: each accepted job has exactly one attempt that succeeded."""
    problems = [f"job {job_id} was accepted and is gone" for job_id in accepted.keys() - {job.id for job in jobs}]
    won = Counter(run.job for run in runs if run.ending == Ending.SUCCEEDED)
    for job in jobs:
        if job.state != JobState.SUCCEEDED or won[job.id] != 1:
            problems.append(f"job {job.id} is {job.state} ({job.error_message}), {won[job.id]} attempts succeeded")
    return problems + [f"attempt {run.attempt} of job {run.job} never ended" for run in runs if run.ending == "never"]


def object_problems(storage: Storage, artifacts: Sequence[Artifact], uploads: set[str]) -> list[str]:
    """Return what is wrong with objects: each artifact is stored with its hash, and nothing else is."""
    wanted = {artifact.key: artifact.sha256 for artifact in artifacts}
    found = set(storage.keys("t/"))
    problems = [f"object {key} belongs to nothing" for key in found - wanted.keys() - uploads]
    problems += [f"object {key} is missing" for key in (wanted.keys() | uploads) - found]
    for key in wanted.keys() & found:
        if hashlib.sha256(storage.get(key)).hexdigest() != wanted[key]:
            problems.append(f"object {key} is not what its row says")
    return problems


def result_problems(artifacts: Sequence[Artifact], accepted: dict[UUID, str]) -> list[str]:
    """Return which edits ended with different bytes, although an interruption must not change any."""
    hashes: dict[tuple[str, str], set[str]] = {}
    for artifact in artifacts:
        if artifact.job_id in accepted and artifact.name != "manifest.json":  # which has timings
            hashes.setdefault((accepted[artifact.job_id], artifact.name), set()).add(artifact.sha256)
    return [
        f"{name} of {template}: {len(kinds)} different results" for (template, name), kinds in hashes.items() if len(kinds) > 1
    ]


def count_effects(
    kind: str, faults: Sequence[Fault], runs: Sequence[AttemptRun], samples: Sequence[ServiceSample]
) -> FaultEffects:
    """Count what the faults of a kind did to the jobs that ran there."""
    line, began = FaultEffects(kind), {(run.job, run.attempt): run.began for run in runs}
    for fault in (fault for fault in faults if fault.kind == kind):
        line.faults += 1
        for job, attempt in fault.hit.items():
            line.hit += 1
            if (job, attempt + 1) not in began or fault is not find_cause(job, attempt, faults):
                line.went_on += 1
                continue
            line.taken_up += 1
            line.longest_wait_s = max(line.longest_wait_s, idle_wait_s(fault.at, began[job, attempt + 1], runs, samples))
    return line


def find_cause(job: UUID, attempt: int, faults: Sequence[Fault]) -> Fault:
    """Return the fault that ended an attempt: the first fault of its worker, else the last that hit it."""
    hit = [fault for fault in faults if fault.hit.get(job) == attempt]
    return next((fault for fault in hit if fault.direct), hit[-1])


def idle_wait_s(since: float, until: float, runs: Sequence[AttemptRun], samples: Sequence[ServiceSample]) -> float:
    """Return the seconds of an interval in which all servers and a worker without a job were up.

    A worker counts from its first claim on: before that, it may still be importing.
    """
    total = 0.0
    for before, now in pairwise(samples):
        if since <= before.at < until and before.servers_up and has_idle_worker(before, runs):
            total += min(now.at, until) - before.at
    return total


def has_idle_worker(sample: ServiceSample, runs: Sequence[AttemptRun]) -> bool:
    """Return whether a worker that has claimed before had no job at that time."""
    known = {run.pid for run in runs if run.began <= sample.at}
    busy = {run.pid for run in runs if run.began <= sample.at < run.ended}
    return bool(sample.workers & known - busy)
