"""The worker's whole policy: which job, how far, when to give up, what is kept."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import numpy as np
import torch
from sqlalchemy.exc import OperationalError
from torch import Tensor

from engine.drag import DragStep
from engine.generator import Generator
from jobs.checkpoints import Manifest, ModelEntry
from jobs.database import Sessions, make_sessions
from jobs.errors import LeaseLost, StorageUnavailable
from jobs.mask import draw_shapes, read_png
from jobs.models import Job
from jobs.queue import Queue
from jobs.repository import JobRepository, Outcome
from jobs.settings import Settings
from jobs.spec import JobSpec
from jobs.states import JobState
from jobs.storage import Storage, upload_key
from worker.edit import choose_device, open_generator, start_latent, steps
from worker.errors import CODES, TimedOut
from worker.lease import Lease, Pace
from worker.recording import Recording, Timings
from worker.upload import Uploader

logger = logging.getLogger(__name__)


class Canceled(Exception):
    """A client wants the job gone."""


@dataclass(frozen=True, kw_only=True)
class Warm:
    """The model in memory."""

    name: str
    sha256: str
    generator: Generator


class Runner:
    """Runs one job after another in one process."""

    def __init__(self, settings: Settings, sessions: Sessions, storage: Storage, queue: Queue) -> None:
        self.settings = settings
        self.sessions = sessions
        self.storage = storage
        self.queue = queue
        self.device = choose_device(settings.device)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.pace = Pace(lease_s=settings.lease_s, beat_s=settings.beat_s, progress_interval_s=settings.progress_interval_s)
        self.warm: Warm | None = None

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        return cls(settings, make_sessions(settings.database_url), Storage.from_settings(settings), Queue(settings.redis_url))

    def run_next(self) -> None:
        """Run the job whose turn it is, if there is one."""
        job = self.claim() or (self.claim() if self.waiting() else None)  # another claim may just have hidden it
        if job is None:
            return
        try:
            self.run(job)
        except LeaseLost as error:
            logger.warning("dropped: %s", error)
        if self.waiting():
            self.queue.wake()  # one message may have been lost; those that wait are worth another

    def claim(self) -> Job | None:
        warm = None if self.warm is None else self.warm.name
        with self.sessions.begin() as session:
            return JobRepository(session).claim(self.name, timedelta(seconds=self.pace.lease_s), warm)

    def waiting(self) -> bool:
        with self.sessions() as session:
            return JobRepository(session).queued(limit=1) > 0

    def run(self, job: Job) -> None:
        """Carry a claimed job to its end.

        When a server is away the error rises and the lease expires; an attempt that broke down otherwise is given up at once.

        Raises:
            LeaseLost: another attempt owns it now.
        """
        logger.info("job %s attempt %d begins", job.id, job.attempt)
        try:
            outcome = self.outcome(job)
        except (LeaseLost, StorageUnavailable, OperationalError):
            raise
        except Exception as error:
            logger.exception("job %s attempt %d broke down", job.id, job.attempt)
            with self.sessions.begin() as session:
                reason = f"{type(error).__name__}: {error}"
                JobRepository(session).release(job.id, job.attempt, reason, self.settings.max_attempts)
            return
        with self.sessions.begin() as session:
            JobRepository(session).finish(job.id, job.attempt, outcome)
        logger.info("job %s attempt %d ends: %s", job.id, job.attempt, outcome.error_message or outcome.state)

    def outcome(self, job: Job) -> Outcome:
        """Run the job; its known ways to end are outcomes, all others errors."""
        try:
            return Outcome(state=JobState.SUCCEEDED, stop_reason=self.edit(job))
        except Canceled:
            return Outcome(state=JobState.CANCELED)
        except tuple(CODES) as error:
            return Outcome(state=JobState.FAILED, error_code=CODES[type(error)], error_message=str(error))

    def edit(self, job: Job) -> str | None:
        """Compute and store everything; returns the drag's stop reason, None when there was nothing to drag."""
        began = time.monotonic()
        spec = JobSpec.model_validate(job.spec)
        lease = Lease(self.sessions, job.id, job.attempt, self.pace)
        with self.silent(lease, "load"):
            manifest = Manifest.load(self.settings.checkpoints)
            model = manifest.get(spec.model)
            generator = self.load(manifest, model)
            movable = self.movable(spec, job.tenant, model.resolution)
        start, loaded = start_latent(spec, generator), time.monotonic()
        with (
            Uploader(job, self.storage, self.sessions) as uploader,
            Recording(spec, generator, start, movable, uploader) as recording,
        ):
            result = self.drag(spec, generator, start, movable, recording, lease, began) if spec.points else None
            timings = Timings(load_s=loaded - began, drag_s=time.monotonic() - loaded)
            with self.silent(lease, "upload"):
                recording.finish(result, model, timings)
        return None if result is None else result.stop_reason

    @contextmanager
    def silent(self, lease: Lease, phase: str) -> Iterator[None]:
        """A phase without steps. Raises Canceled after it if a client asked meanwhile."""
        with lease.silent(phase, self.settings.load_limit_s):
            yield
        if lease.wishes.cancel:
            raise Canceled

    def load(self, manifest: Manifest, model: ModelEntry) -> Generator:
        """The generator, kept for the next job."""
        if self.warm is None or (self.warm.name, self.warm.sha256) != (model.name, model.sha256):
            self.warm = None  # two models at once may be too many
            generator = open_generator(manifest, model, self.device)
            self.warm = Warm(name=model.name, sha256=model.sha256, generator=generator)
        return self.warm.generator

    def movable(self, spec: JobSpec, tenant: str, resolution: int) -> np.ndarray | None:
        if spec.movable is None:
            return None
        if spec.movable.shapes is not None:
            return draw_shapes(spec.movable.shapes, resolution)
        assert spec.movable.upload is not None
        return read_png(self.storage.get(upload_key(tenant, spec.movable.upload)), resolution)

    def drag(
        self, spec: JobSpec, generator: Generator, start: Tensor, movable: np.ndarray | None, recording: Recording,
        lease: Lease, began: float,
    ) -> DragStep:  # fmt: skip
        """Raises Canceled, TimedOut, LeaseLost."""
        for step in steps(spec, generator, start, movable):
            if step.stop_reason is not None:
                lease.renew(progress_of(step, spec))
                return step
            recording.add(step)
            if lease.progress(progress_of(step, spec)).cancel:
                raise Canceled
            if time.monotonic() - began > spec.run_timeout_s:
                with self.silent(lease, "upload"):
                    recording.keep_frames()
                raise TimedOut(f"the job ran longer than its run_timeout_s of {spec.run_timeout_s:g} s")
        raise AssertionError("a drag ends with its result")


def progress_of(step: DragStep, spec: JobSpec) -> dict[str, Any]:
    return {
        "phase": "drag",
        "iteration": step.iteration,
        "max_iterations": spec.drag.max_iterations,
        "distance_px": step.distance_px,
        "handles": step.handles.tolist(),
    }
