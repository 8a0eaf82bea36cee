"""Dynamic batching: the drags of several threads are collected, and one thread computes their next iterations together."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from engine.drag.cuda_graphs import run_shape
from engine.drag.loop import DragBatch, Steps, make_batch, steps
from engine.drag.run import DragRun, DragStep
from engine.errors import DragDiverged
from jobs.settings import MAX_SLOTS
from worker.background_thread import background_thread
from worker.errors import is_out_of_memory

IDLE_S = 0.03  # without a request and without rendering: a drag that has not asked by then waits for something else
POLL_S = 0.005
SERVE_S = 0.1
MOST_WHOLE_MAPS = 4  # drags of a batch that compute whole fine blocks: more are no faster on a CPU
logger = logging.getLogger(__name__)

Batches = dict[tuple[DragRun, ...], DragBatch]
MakeBatch = Callable[[Sequence[DragRun]], DragBatch]


class RenderLock:
    """Lets one thread at a time render, beside the iterations: several would only hinder each other."""

    def __init__(self, threads: int, lock: threading.Lock) -> None:
        """Create the lock of one batcher.

        Args:
            threads: CPU threads that compute an image. The number never changes: a few of an image's bytes may depend on it.
            lock: shared by all render locks of the process.
        """
        self.threads = threads
        self.lock = lock
        self.counting = threading.Lock()
        self.users = 0  # threads that hold the lock or wait for it
        self.released_at = time.monotonic()

    def __enter__(self) -> None:
        with self.counting:
            self.users += 1
        self.lock.acquire()
        torch.set_num_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        with self.counting:
            self.released_at, self.users = time.monotonic(), self.users - 1

    def idle_s(self) -> float:
        """Return for how long nobody has held the lock or waited for it, in seconds."""
        return 0.0 if self.users else time.monotonic() - self.released_at


@dataclass(frozen=True, eq=False)
class ComputedStep:
    """A drag's step, and what its solver takes its next step by."""

    step: DragStep
    update: Any


@dataclass(eq=False)
class StepRequest:
    """A drag that waits for its next iteration."""

    run: DragRun
    done: threading.Event = field(default_factory=threading.Event)
    outcome: ComputedStep | Exception | None = None

    def complete(self, outcome: ComputedStep | Exception) -> None:
        self.outcome = outcome
        self.done.set()


class DynamicBatcher:
    """Threads call `steps`; one other thread, which `serving` starts, computes their iterations."""

    def __init__(
        self, render_lock: RenderLock, threads: Callable[[], int], *, idle_s: float = IDLE_S, make_batch: MakeBatch = make_batch
    ) -> None:
        """Create a batcher without drags.

        Args:
            render_lock: of the threads whose drags come here.
            threads: returns how many CPU threads may compute the next batch.
            idle_s: seconds after which a drag that has not asked is waited for no longer.
            make_batch: makes a batch of drags of one kind.
        """
        self.render_lock = render_lock
        self.threads = threads
        self.idle_limit_s = idle_s
        self.make_batch = make_batch
        self.changed = threading.Condition()
        self.active = 0  # drags between their first iteration and their last
        self.requests: list[StepRequest] = []
        self.requested_at = 0.0  # when the last request came
        self.batches: Batches = {}  # of the last round
        self.most_served = 0  # drags that had an iteration in one round, at most
        self.batch_limit = MAX_SLOTS  # drags whose iterations fit into memory together, as far as is known

    def steps(self, run: DragRun) -> Steps:
        """Iterate a drag like `engine.drag.loop.steps`. Raises what its iterations raise, alone or with others."""
        with self.dragging():
            yield from steps(run, BatchedStepper(self))

    @contextmanager
    def dragging(self) -> Iterator[None]:
        """Count one more active drag."""
        with self.changed:
            self.active += 1
        try:
            yield
        finally:
            with self.changed:
                self.active -= 1
                self.changed.notify_all()

    def compute(self, run: DragRun) -> ComputedStep:
        """Request the drag's next iteration and wait for it. Raises what the iteration raises."""
        request = StepRequest(run)
        with self.changed:
            self.requests.append(request)
            self.requested_at = time.monotonic()
            self.changed.notify_all()
        request.done.wait()
        outcome = request.outcome
        assert outcome is not None
        if isinstance(outcome, ComputedStep):
            return outcome
        try:
            raise outcome
        finally:
            del outcome, request, run  # the error's traceback would keep them in memory

    def serving(self) -> AbstractContextManager[None]:
        """Run a thread that computes the iterations of all requests while the context is open."""

        def serve(over: threading.Event) -> None:
            while not over.is_set():
                self.serve(SERVE_S)

        return background_thread(serve, "steps")

    def serve(self, limit_s: float) -> None:
        """Compute one iteration for all requests, once they are there; do nothing when none comes within limit_s."""
        requests = self.collect_requests(time.monotonic() + limit_s)
        previous, self.batches = self.batches, {}
        torch.set_num_threads(self.threads())
        try:
            for group in group_requests(requests, self.batch_limit):
                self.compute_group(group, previous)
            self.most_served = max(self.most_served, len(requests))
        except Exception as error:  # a defect: no thread must wait for ever
            logger.exception("%d drags end: their steps cannot be made", len(requests))
            for request in requests:
                request.complete(request.outcome or error)

    def collect_requests(self, until: float) -> list[StepRequest]:
        """Return the requests of all active drags, without those that wait for a server themselves."""
        with self.changed:
            while not self.requests and time.monotonic() < until:
                self.changed.wait(until - time.monotonic())
            while self.requests and len(self.requests) < self.active and self.idle_s() < self.idle_limit_s:
                self.changed.wait(POLL_S)
            requests, self.requests = self.requests, []
        return requests

    def idle_s(self) -> float:
        """Return for how long no request has come and nobody has rendered, in seconds."""
        return min(self.render_lock.idle_s(), time.monotonic() - self.requested_at)

    def compute_group(self, requests: Sequence[StepRequest], previous: Batches) -> None:
        """Compute one batch. Where a batch fails, each of its drags is computed alone: one bad drag harms no other."""
        computed = self.try_to_compute(tuple(request.run for request in requests), previous)
        if not isinstance(computed, Exception):
            for request, outcome in zip(requests, computed, strict=True):
                request.complete(outcome)
        elif len(requests) == 1:
            requests[0].complete(computed)
        else:
            if is_out_of_memory(computed):
                self.batch_limit = min(self.batch_limit, len(requests) // 2)
            for request in requests:
                self.compute_group([request], previous)

    def try_to_compute(self, runs: tuple[DragRun, ...], previous: Batches) -> list[ComputedStep | DragDiverged] | Exception:
        """Return the batch's outcomes, or what went wrong, without its traceback, which would keep the step in memory."""
        try:
            batch = previous.pop(runs, None) or self.make_batch(runs)
            computed = zip(batch.step(), batch.updates(), strict=True)
            outcomes = [step if isinstance(step, DragDiverged) else ComputedStep(step, update) for step, update in computed]
        except Exception as error:
            logger.warning("a step of %d drags failed:\n%s", len(runs), traceback.format_exc())
            return error.with_traceback(None)
        self.batches[runs] = batch
        return outcomes


class BatchedStepper:
    """The iterations of one drag, computed by a batcher with those of others."""

    def __init__(self, batcher: DynamicBatcher) -> None:
        self.batcher = batcher
        self.computed: ComputedStep | None = None

    def step(self, run: DragRun) -> DragStep:
        self.computed = self.batcher.compute(run)
        return self.computed.step

    def update(self, run: DragRun) -> Any:
        assert self.computed is not None
        return self.computed.update


def group_requests(requests: Sequence[StepRequest], limit: int) -> Iterator[Sequence[StepRequest]]:
    """Yield groups of at most `limit` requests that can share an iteration; a drag that computes more whole would slow others."""
    kinds: dict[Hashable, list[StepRequest]] = {}
    for request in sorted(requests, key=lambda each: (run_shape(each.run), id(each.run))):  # like batches are like recordings
        kinds.setdefault((request.run.batch_key, request.run.plan.whole), []).append(request)
    for same in kinds.values():
        size = min(limit, group_limit(same[0].run))
        yield from (same[first : first + size] for first in range(0, len(same), size))


def group_limit(run: DragRun) -> int:
    """Return how many drags like this one a batch may have."""
    whole = run.plan.whole == run.plan.until
    return MOST_WHOLE_MAPS if whole and run.start.device.type == "cpu" else MAX_SLOTS
