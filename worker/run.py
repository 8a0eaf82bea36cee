"""The worker's whole policy: which job, how far, when to give up, what is kept."""

import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Self

import numpy as np
import torch
from sqlalchemy.exc import OperationalError

from engine.drag import DragStep
from engine.errors import InversionDiverged
from engine.generator import Generator
from engine.inversion import InversionStep
from jobs.checkpoints import Manifest, ModelEntry
from jobs.database import Sessions, make_sessions
from jobs.errors import LeaseLost, StorageUnavailable
from jobs.framing import Framing
from jobs.mask import movable_mask
from jobs.models import Job
from jobs.queue import Queue
from jobs.repository import JobRepository, Outcome, Wishes
from jobs.settings import Settings
from jobs.spec import Crop, JobSpec
from jobs.states import JobState
from jobs.storage import Storage, upload_key
from worker.drain import Drain
from worker.edit import choose_device, open_generator, steps
from worker.errors import CODES, TimedOut
from worker.lease import Lease, Pace
from worker.recording import Product, Recording, Timings, encode_image
from worker.source import Beginning, Materials, Photo, begin, inversion, invert
from worker.upload import Uploader

logger = logging.getLogger(__name__)


class Canceled(Exception):
    """A client wants the job gone."""


class Drained(Exception):
    """The worker has to end before the job can."""


@dataclass(frozen=True, kw_only=True)
class Warm:
    """The model in memory."""

    name: str
    sha256: str
    generator: Generator


class Runner:
    """Runs one job after another in one process."""

    def __init__(
        self, settings: Settings, sessions: Sessions, storage: Storage, queue: Queue, drain: Drain | None = None
    ) -> None:
        self.settings = settings
        self.draining = drain or Drain()
        self.sessions = sessions
        self.storage = storage
        self.queue = queue
        self.device = choose_device(settings.device)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.pace = Pace(lease_s=settings.lease_s, beat_s=settings.beat_s, progress_interval_s=settings.progress_interval_s)
        self.warm: Warm | None = None

    @classmethod
    def from_settings(cls, settings: Settings, drain: Drain) -> Self:
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # the first one imports for seconds: not under a lease
        sessions, storage = make_sessions(settings.database_url), Storage.from_settings(settings)
        return cls(settings, sessions, storage, Queue(settings.redis_url), drain)

    def run_next(self) -> None:
        """Run the job whose turn it is, if there is one."""
        if self.draining.asked:
            self.queue.wake()  # the message was for somebody who stays
            return
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
        except Drained:
            self.hand_back(job)
            return
        except Exception as error:
            logger.exception("job %s attempt %d broke down", job.id, job.attempt)
            with self.sessions.begin() as session:
                reason = f"{type(error).__name__}: {error}"
                JobRepository(session).release(job.id, job.attempt, reason, self.settings.max_attempts)
            return
        with self.sessions.begin() as session:
            JobRepository(session).finish(job.id, job.attempt, outcome)
        logger.info("job %s attempt %d ends: %s", job.id, job.attempt, outcome.error_message or outcome.state)

    def hand_back(self, job: Job) -> None:
        """Give the job to another worker at once. Raises LeaseLost."""
        with self.sessions.begin() as session:
            JobRepository(session).hand_back(job.id, job.attempt)
        self.queue.wake()
        logger.info("job %s attempt %d handed back: the worker ends", job.id, job.attempt)

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
        attempt = Attempt(job, Lease(self.sessions, job.id, job.attempt, self.pace))
        spec = attempt.spec
        with self.silent(attempt.lease, "load"):
            manifest = Manifest.load(self.settings.checkpoints)
            model = manifest.get(spec.model)
            generator = self.load(manifest, model)
            materials = self.materials(job, spec, model)
        loaded = time.monotonic()
        with Uploader(job, self.storage, self.sessions) as uploader:
            if spec.source.upload is None:
                beginning = begin(spec, generator, materials)
            else:
                beginning = self.invert(attempt, manifest, model, generator, materials, uploader)
            movable, begun = self.movable(spec, job.tenant, beginning.framing), time.monotonic()
            with Recording(spec, beginning, movable, uploader) as recording:
                result = self.drag(attempt, beginning, movable, recording) if spec.points else None
                timings = Timings(load_s=loaded - attempt.began, inversion_s=begun - loaded, drag_s=time.monotonic() - begun)
                with self.silent(attempt.lease, "upload"):
                    recording.finish(result, model, timings)
        return None if result is None else result.stop_reason

    def materials(self, job: Job, spec: JobSpec, model: ModelEntry) -> Materials:
        """What the job builds on. Raises ObjectMissing, InvalidJob."""
        source = spec.source
        if source.upload is not None:
            return Materials(photo=self.photo(job.tenant, source.upload, source.crop, model.resolution))
        if source.latent is not None:
            return Materials(latent=self.storage.get(upload_key(job.tenant, source.latent)))
        if source.job is None:
            return Materials()
        with self.sessions() as session:
            ancestry = JobRepository(session).ancestry(job)
        latent = self.storage.get(ancestry.latent_key)
        changes = None if ancestry.changes_key is None else self.storage.get(ancestry.changes_key)
        root = None if ancestry.root_spec is None else JobSpec.model_validate(ancestry.root_spec).source
        photo = None
        if root is not None and root.upload is not None:
            photo = self.photo(job.tenant, root.upload, root.crop, model.resolution)
        return Materials(photo=photo, latent=latent, changes=changes)

    def photo(self, tenant: str, upload: str, crop: Crop | None, resolution: int) -> Photo:
        return Photo.read(self.storage.get(upload_key(tenant, upload)), crop, resolution)

    def invert(
        self, attempt: "Attempt", manifest: Manifest, model: ModelEntry, generator: Generator, materials: Materials,
        uploader: Uploader,
    ) -> Beginning:  # fmt: skip
        """Raises Canceled, TimedOut, LeaseLost, InversionDiverged; of the last the latent so far is kept as a picture."""
        photo = materials.photo
        assert photo is not None
        with self.silent(attempt.lease, "load"):
            running = inversion(attempt.spec, manifest, model, generator, photo, self.settings.lpips_file)

        def look(step: InversionStep) -> bool:
            return self.look(attempt, inversion_progress(step, attempt.spec)).stop

        try:
            return invert(running, photo, look)
        except InversionDiverged:
            pixels = generator.render(running.w)
            uploader.put(Product("inverted.png", lambda: encode_image(pixels, ".png")))
            uploader.drain()
            raise

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
            generator.render(generator.broadcast(generator.mapping.w_avg[None]))  # a process's first takes a second or two
            self.warm = Warm(name=model.name, sha256=model.sha256, generator=generator)
        return self.warm.generator

    def movable(self, spec: JobSpec, tenant: str, framing: Framing) -> np.ndarray | None:
        if spec.movable is None:
            return None
        upload = spec.movable.upload
        return movable_mask(spec.movable, framing, b"" if upload is None else self.storage.get(upload_key(tenant, upload)))

    def drag(self, attempt: "Attempt", beginning: Beginning, movable: np.ndarray | None, recording: Recording) -> DragStep:
        """Raises Canceled, TimedOut, LeaseLost."""
        spec = attempt.spec
        for step in steps(spec, beginning, movable):
            if step.stop_reason is not None:
                attempt.lease.renew(progress_of(step, spec))
                return step
            recording.add(step)
            try:
                wishes = self.look(attempt, progress_of(step, spec))
            except TimedOut:
                with self.silent(attempt.lease, "upload"):
                    recording.keep_frames()
                raise
            if wishes.stop:
                return replace(step, stop_reason="stopped")
        raise AssertionError("a drag ends with its result")

    def look(self, attempt: "Attempt", progress: dict[str, Any]) -> Wishes:
        """Between two steps: say how far the attempt is, learn what clients want.

        Raises:
            Canceled, TimedOut, Drained, LeaseLost: there is no next step.
        """
        wishes = attempt.lease.progress(progress)
        if wishes.cancel:
            raise Canceled
        if self.draining.overdue(self.settings.drain_grace_s):
            raise Drained
        limit_s = attempt.spec.run_timeout_s
        if time.monotonic() - attempt.began > limit_s:
            raise TimedOut(f"the job ran longer than its run_timeout_s of {limit_s:g} s")
        return wishes


class Attempt:
    """One run of one job."""

    def __init__(self, job: Job, lease: Lease) -> None:
        self.spec = JobSpec.model_validate(job.spec)
        self.lease = lease
        self.began = time.monotonic()


def progress_of(step: DragStep, spec: JobSpec) -> dict[str, Any]:
    return {
        "phase": "drag",
        "iteration": step.iteration,
        "max_iterations": spec.drag.max_iterations,
        "distance_px": step.distance_px,
        "handles": step.handles.tolist(),
    }


def inversion_progress(step: InversionStep, spec: JobSpec) -> dict[str, Any]:
    assert spec.inversion is not None
    steps_of = {"projection": spec.inversion.steps, "tuning": spec.inversion.tuning_steps}
    return {
        "phase": step.phase,
        "iteration": step.iteration,
        "max_iterations": steps_of[step.phase],
        "psnr_db": round(step.psnr_db, 2),
    }
