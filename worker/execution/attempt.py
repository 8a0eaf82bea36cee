"""One run of one job, from load to finish: it goes on from what an earlier attempt left, and leaves the same to a later one."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engine.drag.loop import Steps, steps
from engine.drag.run import DragRun, DragStep
from engine.errors import InversionDiverged
from engine.inversion.inversion import Inversion, InversionStep
from engine.media.encoding import encode_image
from engine.media.provenance import DigitalSourceType
from engine.networks.stylegan2 import Generator
from jobs.database import Sessions
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.queue.attempts import JobRequests
from jobs.settings import Settings
from jobs.spec.job_spec import JobSpec
from jobs.storage.objects import Storage
from jobs.tables import Job
from worker.edit.artifacts import GROUP_SIZE, TUNED, ArtifactWriter, PendingArtifact, Timings, with_provenance
from worker.edit.engine_setup import prepare_drag
from worker.edit.inputs import (
    CurvePoint,
    EditStart,
    InputFetcher,
    JobInputs,
    prepare_inversion,
    start_from_finished_inversion,
    start_from_inversion,
    start_without_inversion,
)
from worker.edit.resume_state import ResumeState, made_by
from worker.edit.uploader import Uploader
from worker.errors import TimedOut
from worker.execution.drain import Drain
from worker.execution.lease import Lease, LeaseTimes
from worker.execution.model_cache import ModelCache
from worker.execution.resume_policy import Drained, EarlierWork, ResumePolicy, Snapshot, load_earlier_work
from worker.slots.dynamic_batcher import DynamicBatcher


@dataclass(frozen=True, kw_only=True)
class AttemptContext:
    """What all attempts of a worker process use."""

    settings: Settings
    sessions: Sessions
    storage: Storage
    models: ModelCache
    drain: Drain
    clock: Callable[[], float] = time.monotonic
    make_writer: Callable[..., ArtifactWriter] = ArtifactWriter
    prepare_inversion: Callable[..., Inversion] = prepare_inversion


@dataclass(frozen=True, kw_only=True)
class LoadedJob:
    """Everything that the arithmetic needs, in memory."""

    manifest: ModelManifest
    model: ModelEntry
    generator: Generator
    inputs: JobInputs
    earlier: EarlierWork


class Attempt:
    """One run of one job."""

    def __init__(
        self, job: Job, context: AttemptContext, *, batcher: DynamicBatcher | None = None, group_size: int = GROUP_SIZE
    ) -> None:
        """Do nothing yet.

        Args:
            batcher: makes this drag's steps together with others'; None: the steps are made alone.
            group_size: frames rendered at a time.
        """
        settings = context.settings
        times = LeaseTimes(lease_s=settings.lease_s, beat_s=settings.beat_s, progress_interval_s=settings.progress_interval_s)
        self.job = job
        self.context = context
        self.batcher = batcher
        self.group_size = group_size
        self.spec = JobSpec.model_validate(job.spec)
        self.lease = Lease(context.sessions, job.id, job.attempt, times)
        self.fetcher = InputFetcher(job, self.spec, context.storage, context.sessions, settings.patience_s)
        self.began = context.clock()
        self.spent_earlier_s = 0.0  # by earlier attempts

    def run(self) -> str | None:
        """Compute and store everything; return the drag's stop reason, None when there was nothing to drag.

        Raises:
            Canceled, Drained, TimedOut, LeaseLost: the attempt ends before the job is done.
            StorageUnavailable, OperationalError: a server was away for longer than a job waits.
        """
        clock = self.context.clock
        with self.renewed_in_background("load"):
            loaded = self.load()
        loaded_at = clock()
        with self.renewed_between_steps(), self.make_uploader(loaded.earlier) as uploader:
            resume = ResumePolicy(uploader, self.lease, self.context.settings, clock, self.began)
            start = self.find_start(loaded, resume)
            with self.renewed_in_background("load"):
                movable, started_at = self.fetcher.fetch_movable_mask(start.crop_transform), clock()
            with self.make_writer(start, movable, uploader, loaded.earlier) as writer:
                state = loaded.earlier.state
                if start.curve and (state is None or state.drag is None):  # any other start takes no time to find
                    resume.save(Snapshot(state=self.state_at_start(loaded, start), kept_names=list(writer.put_names)))
                result = self.drag(loaded, start, movable, writer, resume) if self.spec.points else None
                timings = Timings(load_s=loaded_at - self.began, inversion_s=started_at - loaded_at, drag_s=clock() - started_at)
                with self.renewed_in_background("upload"):
                    writer.finish(result, loaded.model, timings)
        return None if result is None else result.stop_reason

    def load(self) -> LoadedJob:
        """Read the model, fetch what the job builds on, and what an earlier attempt left."""
        manifest = ModelManifest.load(self.context.settings.checkpoints)
        manifest.require_valid(self.spec.model)
        model = manifest.get(self.spec.model)
        generator = self.context.models.get(manifest, model)
        inputs = self.fetcher.fetch_inputs(model)
        earlier = load_earlier_work(self.job, made_by(model), self.fetcher, self.context.sessions)
        if earlier.state is not None:
            self.spent_earlier_s = earlier.state.spent_s
        return LoadedJob(manifest=manifest, model=model, generator=generator, inputs=inputs, earlier=earlier)

    def make_uploader(self, earlier: EarlierWork) -> Uploader:
        return Uploader(
            self.job,
            self.context.storage,
            self.context.sessions,
            stored=earlier.stored,
            patience_s=self.context.settings.patience_s,
            while_waiting=lambda: self.report_progress({}),
        )

    def make_writer(
        self, start: EditStart, movable: np.ndarray | None, uploader: Uploader, earlier: EarlierWork
    ) -> ArtifactWriter:
        kept = [stored.name for stored in earlier.stored]
        return self.context.make_writer(
            self.spec, start, movable, uploader, kept=kept, group_size=self.group_size, render_lock=self.render_lock
        )

    def find_start(self, loaded: LoadedJob, resume: ResumePolicy) -> EditStart:
        """Return where the drag starts, after an inversion where the job has a photo. Raises what `invert` raises."""
        if self.spec.source.upload is None:
            return start_without_inversion(self.spec, loaded.generator, loaded.inputs)
        photo, state = loaded.inputs.photo, loaded.earlier.state
        assert photo is not None
        if state is not None and state.start is not None:
            with self.renewed_in_background("load"):
                tuned = next((self.fetcher.fetch_object(kept.key) for kept in loaded.earlier.stored if kept.name == TUNED), None)
                return start_from_finished_inversion(loaded.generator, photo, state.start, tuned, state.curve)
        with self.renewed_in_background("load"):
            prepare, lpips = self.context.prepare_inversion, self.context.settings.lpips_file
            inversion = prepare(self.spec, loaded.manifest, loaded.model, loaded.generator, photo, lpips)
        try:
            curve = self.invert(inversion, loaded, resume)
        except InversionDiverged:
            self.keep_last_picture(inversion, resume.uploader)
            raise
        return start_from_inversion(inversion, photo, curve)

    def invert(self, inversion: Inversion, loaded: LoadedJob, resume: ResumePolicy) -> list[CurvePoint]:
        """Run an inversion to its end, or until a client asks to stop; return its curve.

        Raises:
            Canceled, TimedOut, Drained, LeaseLost: there is no next step.
            InversionDiverged: the inversion's w is the last one that was a latent.
        """
        curve: list[CurvePoint] = []
        state = loaded.earlier.state
        if state is not None and state.inversion is not None:
            curve += state.curve
            inversion.restore(state.inversion)
        phase = inversion.phase

        def take_snapshot() -> Snapshot:
            before = curve[:-1]  # the step of the state comes once more
            return Snapshot(state=replace(self.new_state(loaded), curve=before, inversion=inversion.state()))

        for step in inversion.run():
            curve.append(CurvePoint.of(step))
            if step.phase != phase or resume.is_due(step.phase):
                resume.save(take_snapshot())
            phase = step.phase
            with resume.saving_when_drained(take_snapshot):
                requests = self.report_progress(inversion_progress(step, self.spec))
            if requests.stop:
                break
        return curve

    def keep_last_picture(self, inversion: Inversion, uploader: Uploader) -> None:
        """Store the picture of the last latent of an inversion that diverged."""
        pixels = inversion.original.render(inversion.w)

        def encode() -> bytes:
            return with_provenance(encode_image(pixels, ".png"), ".png", DigitalSourceType.EDITED)

        uploader.put(PendingArtifact("inverted.png", encode))
        uploader.wait_until_stored()

    def drag(
        self, loaded: LoadedJob, start: EditStart, movable: np.ndarray | None, writer: ArtifactWriter, resume: ResumePolicy
    ) -> DragStep:
        """Run the drag to its end, or until a client asks to stop; return its result.

        Raises:
            Canceled, TimedOut, Drained, LeaseLost: there is no next step.
        """
        state = loaded.earlier.state
        with self.render_lock:
            run = prepare_drag(self.spec, start, movable)
            if state is not None and state.drag is not None:
                run.restore(state.drag)
        if state is not None and state.drag is not None:
            writer.restore(state.written, lambda: self.report_progress({"phase": "load"}))

        def take_snapshot() -> Snapshot:
            now = replace(self.state_at_start(loaded, start), drag=run.state(), written=writer.steps_before(run.iteration))
            return Snapshot(state=now, kept_names=list(writer.put_names))

        with closing(self.make_steps(run)) as made:
            for step in made:
                if step.stop_reason is not None:
                    if resume.is_overdue("drag"):
                        resume.save(take_snapshot())
                    self.lease.try_to_renew(drag_progress(replace(step, iteration=run.iteration), self.spec))  # no step back
                    return step
                writer.add_step(step)
                if resume.is_due("drag"):
                    resume.save(take_snapshot())
                with resume.saving_when_drained(take_snapshot):
                    requests = self.report_drag_step(step, writer)
                if requests.stop:
                    resume.save(take_snapshot())
                    return replace(step, stop_reason="stopped")
        raise AssertionError("a drag ends with its result")

    def make_steps(self, run: DragRun) -> Steps:
        return steps(run) if self.batcher is None else self.batcher.steps(run)

    @property
    def render_lock(self) -> AbstractContextManager[None]:
        """Held while rendering, and whatever else computes beside the steps of other jobs."""
        return nullcontext() if self.batcher is None else self.batcher.render_lock

    def report_drag_step(self, step: DragStep, writer: ArtifactWriter) -> JobRequests:
        """Report a step; a job that has run too long keeps its frames."""
        try:
            return self.report_progress(drag_progress(step, self.spec))
        except TimedOut:
            with self.renewed_in_background("upload"):
                writer.keep_frames()
            raise

    def report_progress(self, progress: dict[str, Any]) -> JobRequests:
        """Report how far the attempt is, between two steps; return what clients have asked.

        Raises:
            Canceled, TimedOut, Drained, LeaseLost: there is no next step.
        """
        requests = self.lease.report_progress(progress)
        if self.context.drain.is_overdue(self.context.settings.drain_grace_s):
            raise Drained
        if self.spent_s() > self.spec.run_timeout_s:
            raise TimedOut(f"the job ran longer than its run_timeout_s of {self.spec.run_timeout_s:g} s")
        return requests

    def renewed_in_background(self, phase: str) -> AbstractContextManager[None]:
        """Renew the lease during a phase without steps. Raises Canceled after it if a client has asked for that."""
        return self.lease.renewed_in_background(phase, self.context.settings.load_limit_s)

    def renewed_between_steps(self) -> AbstractContextManager[None]:
        """Renew the lease while steps wait for other jobs': that may take longer than the lease lasts."""
        return nullcontext() if self.batcher is None else self.lease.renewed_between_steps(self.context.settings.load_limit_s)

    def spent_s(self) -> float:
        """Return the seconds that all attempts have spent on the job."""
        return self.spent_earlier_s + self.context.clock() - self.began

    def new_state(self, loaded: LoadedJob) -> ResumeState:
        return ResumeState(made_by=made_by(loaded.model), spent_s=self.spent_s(), curve=[])

    def state_at_start(self, loaded: LoadedJob, start: EditStart) -> ResumeState:
        return replace(self.new_state(loaded), curve=start.curve, start=start.w, tuned=bool(start.tuned_tensors))


def drag_progress(step: DragStep, spec: JobSpec) -> dict[str, Any]:
    """Return what the job's row says of a step of its drag."""
    return {
        "phase": "drag",
        "iteration": step.iteration,
        "max_iterations": spec.drag.max_iterations,
        "distance_px": step.distance_px,
        "handles": step.handles.tolist(),
        "psnr_db": None,  # of the inversion before
    }


def inversion_progress(step: InversionStep, spec: JobSpec) -> dict[str, Any]:
    """Return what the job's row says of a step of its inversion."""
    assert spec.inversion is not None
    steps_of = {"projection": spec.inversion.steps, "tuning": spec.inversion.tuning_steps}
    return {
        "phase": step.phase,
        "iteration": step.iteration,
        "max_iterations": steps_of[step.phase],
        "psnr_db": round(step.psnr_db, 2),
    }
