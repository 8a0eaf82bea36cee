"""What came out of it: every job, every object, every wait."""

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
class Moment:
    """The site at one look."""

    at: float  # time.time()
    servers_up: bool
    workers: frozenset[int]  # process ids that may compute


@dataclass(frozen=True)
class Run:
    """One attempt, by the database's clock."""

    job: UUID
    attempt: int
    pid: int
    began: float
    ended: float
    ending: str


@dataclass
class Line:
    """All faults of a kind."""

    kind: str
    faults: int = 0
    hit: int = 0  # jobs that ran where it happened
    went_on: int = 0  # of them, in the same attempt
    taken_up: int = 0  # of them, by another attempt
    longest_wait_s: float = 0.0  # of those, while an idle worker and all servers were up


@dataclass
class Verdict:
    jobs: int
    attempts: int
    endings: dict[str, int]
    lines: list[Line]
    problems: list[str] = field(default_factory=list)  # jobs, results and objects that are not as they must be
    late: list[str] = field(default_factory=list)  # jobs that waited longer than they should


def judge(
    sessions: Sessions, storage: Storage, faults: Sequence[Fault], moments: Sequence[Moment], accepted: dict[UUID, str],
    allowed_wait_s: float, *, same_bytes: bool,
) -> Verdict:  # fmt: skip
    """When all is quiet and purged.

    Args:
        accepted: jobs that the API has answered for, and which of the templates each is.
        same_bytes: whether the same edit must have the same results to the byte, as it must where each job runs alone.
    """
    with sessions() as session:
        jobs, artifacts = session.query(Job).all(), session.query(Artifact).all()
        uploads = session.query(Upload).all()
        runs = [run_of(row) for row in session.query(Attempt).all()]
    endings = Counter(run.ending for run in runs)
    lines = [line_of(kind, faults, runs, moments) for kind in dict.fromkeys(fault.kind for fault in faults)]
    verdict = Verdict(len(jobs), len(runs), dict(endings), lines)
    verdict.problems += job_problems(jobs, runs, accepted)
    verdict.problems += object_problems(storage, artifacts, {upload_key(row.tenant, row.sha256) for row in uploads})
    if same_bytes:
        verdict.problems += result_problems(artifacts, accepted)
    late = [line for line in lines if line.longest_wait_s > allowed_wait_s]
    verdict.problems += [
        f"{line.kind}: a job waited {line.longest_wait_s:.1f} s, allowed {allowed_wait_s:.1f} s" for line in late
    ]
    return verdict


def run_of(row: Attempt) -> Run:
    ended = row.ended_at.timestamp() if row.ended_at else float("inf")
    return Run(row.job_id, row.attempt, pid_of(row.worker), row.began_at.timestamp(), ended, row.ending or "never")


def job_problems(jobs: Sequence[Job], runs: Sequence[Run], accepted: dict[UUID, str]) -> list[str]:
    problems = [f"job {job_id} was accepted and is gone" for job_id in accepted.keys() - {job.id for job in jobs}]
    won = Counter(run.job for run in runs if run.ending == Ending.SUCCEEDED)
    for job in jobs:
        if job.state != JobState.SUCCEEDED or won[job.id] != 1:
            problems.append(f"job {job.id} is {job.state} ({job.error_message}), {won[job.id]} attempts succeeded")
    return problems + [f"attempt {run.attempt} of job {run.job} never ended" for run in runs if run.ending == "never"]


def object_problems(storage: Storage, artifacts: Sequence[Artifact], uploads: set[str]) -> list[str]:
    """Each artifact is there with its hash, and nothing else is."""
    wanted = {artifact.key: artifact.sha256 for artifact in artifacts}
    found = set(storage.keys("t/"))
    problems = [f"object {key} belongs to nothing" for key in found - wanted.keys() - uploads]
    problems += [f"object {key} is missing" for key in (wanted.keys() | uploads) - found]
    for key in wanted.keys() & found:
        if hashlib.sha256(storage.get(key)).hexdigest() != wanted[key]:
            problems.append(f"object {key} is not what its row says")
    return problems


def result_problems(artifacts: Sequence[Artifact], accepted: dict[UUID, str]) -> list[str]:
    """The same edit ends with the same bytes, however often it was interrupted."""
    seen: dict[tuple[str, str], set[str]] = {}
    for artifact in artifacts:
        if artifact.job_id in accepted and artifact.name != "manifest.json":  # which has timings
            seen.setdefault((accepted[artifact.job_id], artifact.name), set()).add(artifact.sha256)
    return [f"{name} of {template}: {len(kinds)} different results" for (template, name), kinds in seen.items() if len(kinds) > 1]


def line_of(kind: str, faults: Sequence[Fault], runs: Sequence[Run], moments: Sequence[Moment]) -> Line:
    line, began = Line(kind), {(run.job, run.attempt): run.began for run in runs}
    for fault in (fault for fault in faults if fault.kind == kind):
        line.faults += 1
        for job, attempt in fault.hit.items():
            line.hit += 1
            if (job, attempt + 1) not in began or fault is not to_blame(job, attempt, faults):
                line.went_on += 1
                continue
            line.taken_up += 1
            line.longest_wait_s = max(line.longest_wait_s, idle_wait_s(fault.at, began[job, attempt + 1], runs, moments))
    return line


def to_blame(job: UUID, attempt: int, faults: Sequence[Fault]) -> Fault:
    """Of all faults that met an attempt the one that ended it: the first that met its worker, else the last."""
    met = [fault for fault in faults if fault.hit.get(job) == attempt]
    return next((fault for fault in met if fault.direct), met[-1])


def idle_wait_s(since: float, until: float, runs: Sequence[Run], moments: Sequence[Moment]) -> float:
    """How long all servers and a worker without a job were up background_thread. A worker counts from its first claim on: before,
    it may still be importing."""
    total = 0.0
    for before, now in pairwise(moments):
        if since <= before.at < until and before.servers_up and has_idle_worker(before, runs):
            total += min(now.at, until) - before.at
    return total


def has_idle_worker(moment: Moment, runs: Sequence[Run]) -> bool:
    known = {run.pid for run in runs if run.began <= moment.at}
    busy = {run.pid for run in runs if run.began <= moment.at < run.ended}
    return bool(moment.workers & known - busy)
