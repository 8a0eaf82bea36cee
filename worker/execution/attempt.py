"""One run of one job: what it builds on, how it goes, what it leaves behind."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.drag.loop import Steps, steps
from engine.drag.run import DragRun, DragStep
from engine.errors import InversionDiverged
from engine.inversion.inversion import Inversion, InversionStep
from engine.media.provenance import DigitalSourceType
from engine.networks.stylegan2 import Generator
from jobs.database import Sessions
from jobs.errors import ObjectMissing
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.queue import attempts, jobs
from jobs.queue.attempts import JobRequests
from jobs.queue.jobs import Ancestry
from jobs.settings import Settings
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import Crop, JobSpec
from jobs.spec.movable_mask import movable_mask
from jobs.storage.artifacts import StoredObject
from jobs.storage.objects import Storage, upload_key
from jobs.tables import Job
from worker.edit.artifacts import GROUP, TUNED, ArtifactWriter, PendingArtifact, Timings, encode_image, marked
from worker.edit.drag import drag_run
from worker.edit.inputs import CurvePoint, EditStart, JobInputs, Photo, begin, inversion, invert, inverted
from worker.edit.resume_state import ResumeState, ResumeStateUnreadable, made_by
from worker.edit.uploader import Uploader
from worker.errors import TimedOut
from worker.execution.drain import Drain
from worker.execution.lease import Lease, Pace
from worker.execution.model_cache import ModelCache
from worker.retry import retry_while_unavailable
from worker.slots.dynamic_batcher import DynamicBatcher

logger = logging.getLogger(__name__)


class Canceled(Exception):
    """A client wants the job gone."""


class Drained(Exception):
    """The worker has to end before the job can."""


@dataclass(frozen=True, kw_only=True)
class Tools:
    """What every attempt of a worker process uses."""

    settings: Settings
    sessions: Sessions
    storage: Storage
    models: ModelCache
    draining: Drain
    meeting: DynamicBatcher | None = None  # where this attempt's drag meets others

    def steps(self, run: DragRun) -> Steps:
        return steps(run) if self.meeting is None else self.meeting.steps(run)

    @property
    def turn(self) -> AbstractContextManager[None]:
        """Held while rendering, and whatever else computes beside the steps."""
        return nullcontext() if self.meeting is None else self.meeting.render_lock


class Attempt:
    """Goes on from the job's checkpoint where there is one, and saves its own."""

    def __init__(self, job: Job, tools: Tools, *, group: int = GROUP) -> None:
        """Args:
        group: frames rendered at a time.
        """
        settings = tools.settings
        pace = Pace(lease_s=settings.lease_s, beat_s=settings.beat_s, progress_interval_s=settings.progress_interval_s)
        self.job = job
        self.tools = tools
        self.group = group
        self.spec = JobSpec.model_validate(job.spec)
        self.lease = Lease(tools.sessions, job.id, job.attempt, pace)
        self.began = time.monotonic()  # earlier by what earlier attempts spent
        self.saved = self.began
        self.kept: list[StoredObject] = []  # artifacts of an earlier attempt
        self.made_by = ""  # what computes, of which checkpoints tell

    def run(self) -> str | None:
        """Compute and store everything; returns the drag's stop reason, None when there was nothing to drag.

        Raises:
            Canceled, Drained, TimedOut, LeaseLost: the attempt ends before the job is done.
            StorageUnavailable, OperationalError: a server was away for longer than a job waits.
        """
        began = time.monotonic()
        with self.silent("load"):
            manifest = ModelManifest.load(self.tools.settings.checkpoints)
            model = manifest.get(self.spec.model)
            generator = self.tools.models.get(manifest, model)
            self.made_by = made_by(model)
            materials = self.materials(model)
            before = self.take_up()
        loaded = time.monotonic()
        with self.beside(), self.uploader() as uploader:
            beginning = self.beginning(manifest, model, generator, materials, before, uploader)
            with self.silent("load"):
                movable, begun = self.movable(beginning.framing), time.monotonic()
            kept = [stored.name for stored in self.kept]
            with ArtifactWriter(
                self.spec, beginning, movable, uploader, kept=kept, group=self.group, turn=self.tools.turn
            ) as recording:
                if beginning.curve and (before is None or before.drag is None):  # else what came before takes no time
                    self.save(uploader, self.at_the_drag(beginning), recording.given)
                result = self.drag(beginning, movable, recording, before, uploader) if self.spec.points else None
                timings = Timings(load_s=loaded - began, inversion_s=begun - loaded, drag_s=time.monotonic() - begun)
                with self.silent("upload"):
                    recording.finish(result, model, timings)
        return None if result is None else result.stop_reason

    def take_up(self) -> ResumeState | None:
        """What an earlier attempt left, with its artifacts made ours; None: begin from the start."""
        checkpoint = self.job.checkpoint
        if checkpoint is None:
            return None
        try:
            progress = ResumeState.decode(self.fetch(checkpoint["key"]), self.made_by)
        except (ObjectMissing, ResumeStateUnreadable) as error:
            logger.warning("job %s begins from the start: its checkpoint: %s", self.job.id, error)
            return None
        self.kept = retry_while_unavailable(lambda: self.adopt(checkpoint), self.tools.settings.patience_s)
        if progress.tuned and TUNED not in [stored.name for stored in self.kept]:
            logger.warning("job %s begins from the start: the generator it tuned is gone", self.job.id)
            self.kept = []
            return None
        self.began -= progress.spent_s
        return progress

    def adopt(self, checkpoint: dict[str, Any]) -> list[StoredObject]:
        with self.tools.sessions.begin() as session:
            return attempts.adopt_artifacts(session, self.job.id, self.job.attempt, checkpoint["names"], checkpoint["attempt"])

    def uploader(self) -> Uploader:
        tools = self.tools
        uploader = Uploader(
            self.job, tools.storage, tools.sessions, patience_s=tools.settings.patience_s, while_waiting=self.wait_for_the_store
        )
        uploader.stored += self.kept
        return uploader

    def wait_for_the_store(self) -> None:
        self.look({})

    def materials(self, model: ModelEntry) -> JobInputs:
        """What the job builds on. Raises ObjectMissing, InvalidJob."""
        source = self.spec.source
        if source.upload is not None:
            return JobInputs(photo=self.photo(source.upload, source.crop, model.resolution))
        if source.latent is not None:
            return JobInputs(latent=self.fetch(upload_key(self.job.tenant, source.latent)))
        if source.job is None:
            return JobInputs()
        ancestry = retry_while_unavailable(self.ancestry, self.tools.settings.patience_s)
        latent = self.fetch(ancestry.latent_key)
        changes = None if ancestry.changes_key is None else self.fetch(ancestry.changes_key)
        root = None if ancestry.root_spec is None else JobSpec.model_validate(ancestry.root_spec).source
        photo = None
        if root is not None and root.upload is not None:
            photo = self.photo(root.upload, root.crop, model.resolution)
        return JobInputs(photo=photo, latent=latent, changes=changes)

    def ancestry(self) -> Ancestry:
        with self.tools.sessions() as session:
            return jobs.get_ancestry(session, self.job)

    def photo(self, upload: str, crop: Crop | None, resolution: int) -> Photo:
        return Photo.read(self.fetch(upload_key(self.job.tenant, upload)), crop, resolution)

    def fetch(self, key: str) -> bytes:
        """An object; a store that is away is waited for. Raises ObjectMissing, StorageUnavailable."""
        return retry_while_unavailable(lambda: self.tools.storage.get(key), self.tools.settings.patience_s)

    def movable(self, framing: CropTransform) -> np.ndarray | None:
        movable = self.spec.movable
        if movable is None:
            return None
        png = b"" if movable.upload is None else self.fetch(upload_key(self.job.tenant, movable.upload))
        return movable_mask(movable, framing, png)

    def beginning(
        self, manifest: ModelManifest, model: ModelEntry, generator: Generator, materials: JobInputs, before: ResumeState | None,
        uploader: Uploader,
    ) -> EditStart:  # fmt: skip
        """Where the drag begins."""
        if self.spec.source.upload is None:
            return begin(self.spec, generator, materials)
        assert materials.photo is not None
        if before is not None and before.start is not None:
            with self.silent("load"):
                return inverted(generator, materials.photo, before.start, self.tuned(), before.curve)
        with self.silent("load"):
            lpips = self.tools.settings.lpips_file
            running = inversion(self.spec, manifest, model, generator, materials.photo, lpips)
        return self.invert(running, materials.photo, before, uploader)

    def tuned(self) -> bytes | None:
        """The tensors of the generator that an earlier attempt tuned, where it did."""
        return next((self.fetch(stored.key) for stored in self.kept if stored.name == TUNED), None)

    def invert(self, running: Inversion, photo: Photo, before: ResumeState | None, uploader: Uploader) -> EditStart:
        """Raises Canceled, TimedOut, Drained, LeaseLost, InversionDiverged: of that the latent so far is kept as a picture."""
        curve: list[CurvePoint] = []
        if before is not None and before.inversion is not None:
            curve += before.curve
            running.restore(before.inversion)
        phase = running.phase

        def now() -> ResumeState:
            state = running.state()
            return ResumeState(made_by=self.made_by, spent_s=self.spent_s(), curve=curve[:-1], inversion=state)

        def look(step: InversionStep) -> bool:
            nonlocal phase
            if step.phase != phase or self.due(step.phase, uploader):
                self.save(uploader, now(), [])
            phase = step.phase
            with self.saving_when_drained(uploader, now, lambda: []):
                return self.look(inversion_progress(step, self.spec)).stop

        try:
            return invert(running, photo, look, curve)
        except InversionDiverged:
            pixels = running.original.render(running.w)
            uploader.put(
                PendingArtifact("inverted.png", lambda: marked(encode_image(pixels, ".png"), ".png", DigitalSourceType.EDITED))
            )
            uploader.drain()
            raise

    def drag(
        self,
        beginning: EditStart,
        movable: np.ndarray | None,
        recording: ArtifactWriter,
        before: ResumeState | None,
        uploader: Uploader,
    ) -> DragStep:
        """Raises Canceled, TimedOut, Drained, LeaseLost."""
        with self.tools.turn:
            run = drag_run(self.spec, beginning, movable)
            if before is not None and before.drag is not None:
                run.restore(before.drag)
        if before is not None and before.drag is not None:
            recording.take_up(before.past, lambda: self.look({"phase": "load"}))

        def now() -> ResumeState:
            return replace(self.at_the_drag(beginning), drag=run.state(), past=recording.past(run.iteration))

        with closing(self.tools.steps(run)) as made:
            for step in made:
                if step.stop_reason is not None:
                    if self.late("drag"):
                        self.save(uploader, now(), recording.given)
                    self.lease.try_to_renew(progress_of(replace(step, iteration=run.iteration), self.spec))  # no step back
                    return step
                recording.add(step)
                if self.due("drag", uploader):
                    self.save(uploader, now(), recording.given)
                with self.saving_when_drained(uploader, now, lambda: recording.given):
                    wishes = self.look_or_keep_frames(step, recording)
                if wishes.stop:
                    self.save(uploader, now(), recording.given)
                    return replace(step, stop_reason="stopped")
        raise AssertionError("a drag ends with its result")

    def look_or_keep_frames(self, step: DragStep, recording: ArtifactWriter) -> JobRequests:
        try:
            return self.look(progress_of(step, self.spec))
        except TimedOut:
            with self.silent("upload"):
                recording.keep_frames()
            raise

    def look(self, progress: dict[str, Any]) -> JobRequests:
        """Between two steps: say how far the attempt is, learn what clients want.

        Raises:
            Canceled, TimedOut, Drained, LeaseLost: there is no next step.
        """
        wishes = self.lease.progress(progress)
        if wishes.cancel:
            raise Canceled
        if self.tools.draining.overdue(self.tools.settings.drain_grace_s):
            raise Drained
        if self.spent_s() > self.spec.run_timeout_s:
            raise TimedOut(f"the job ran longer than its run_timeout_s of {self.spec.run_timeout_s:g} s")
        return wishes

    @contextmanager
    def silent(self, phase: str) -> Iterator[None]:
        """A phase without steps. Raises Canceled after it if a client asked background_thread."""
        with self.lease.silent(phase, self.tools.settings.load_limit_s):
            yield
        if self.lease.wishes.cancel:
            raise Canceled

    def beside(self) -> AbstractContextManager[None]:
        """Beside others an attempt may wait for longer than its lease lasts."""
        return nullcontext() if self.tools.meeting is None else self.lease.kept(self.tools.settings.load_limit_s)

    def spent_s(self) -> float:
        return time.monotonic() - self.began

    def at_the_drag(self, beginning: EditStart) -> ResumeState:
        return ResumeState(
            made_by=self.made_by, spent_s=self.spent_s(), curve=beginning.curve, start=beginning.w, tuned=bool(beginning.changes)
        )

    def due(self, phase: str, uploader: Uploader) -> bool:
        """Whether it is time for another checkpoint, and the last one is safe."""
        uploader.check()
        return self.late(phase) and not uploader.saving

    def late(self, phase: str) -> bool:
        """Whether the last checkpoint is old enough for another."""
        settings = self.tools.settings
        every_s = settings.tuning_checkpoint_s if phase == "tuning" else settings.checkpoint_s
        return time.monotonic() - self.saved >= every_s

    def save(self, uploader: Uploader, progress: ResumeState, names: list[str]) -> None:
        """Send a checkpoint; names are the artifacts that the next attempt need not make again."""
        self.saved = time.monotonic()
        uploader.save(progress.encode, list(names))

    @contextmanager
    def saving_when_drained(
        self, uploader: Uploader, now: Callable[[], ResumeState], names: Callable[[], list[str]]
    ) -> Iterator[None]:
        try:
            yield
        except Drained:
            with self.silent("upload"):
                self.save(uploader, now(), names())
                uploader.drain()
            raise


def progress_of(step: DragStep, spec: JobSpec) -> dict[str, Any]:
    return {
        "phase": "drag",
        "iteration": step.iteration,
        "max_iterations": spec.drag.max_iterations,
        "distance_px": step.distance_px,
        "handles": step.handles.tolist(),
        "psnr_db": None,  # of the inversion before
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
