"""Where the drags of one process meet to make their steps together."""

import logging
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

import torch

from engine.drag.batch import DragBatch
from engine.drag.cuda_graphs import shape
from engine.drag.loop import make_batch, steps
from engine.drag.run import DragRun, DragStep, Steps
from engine.errors import DragDiverged
from jobs.settings import MAX_SLOTS
from worker.background_thread import background_thread
from worker.errors import is_out_of_memory

IDLE_S = 0.03  # in which nobody came and nobody rendered: who is not there by then waits for something else
LOOK_S = 0.005
SERVE_S = 0.1
WHOLE_MAPS = 4  # drags a step that compute whole fine blocks: more are no faster on a CPU
logger = logging.getLogger(__name__)


class RenderLock:
    """One thread at a time renders, beside the steps: more would only hinder each other."""

    def __init__(self, threads: int, lock: threading.Lock) -> None:
        """
        Args:
            threads: that compute a picture, always as many: a few of its bytes may depend on that.
            lock: of all turns of the process.
        """
        self.threads = threads
        self.lock = lock
        self.counting = threading.Lock()
        self.wanted = 0  # by that many threads, the one that has it included
        self.ended = time.monotonic()

    def __enter__(self) -> None:
        with self.counting:
            self.wanted += 1
        self.lock.acquire()
        torch.set_num_threads(self.threads)

    def __exit__(self, *_: object) -> None:
        self.lock.release()
        with self.counting:
            self.ended, self.wanted = time.monotonic(), self.wanted - 1

    def idle_s(self) -> float:
        """How long nobody has had it, or wanted it."""
        return 0.0 if self.wanted else time.monotonic() - self.ended


@dataclass(eq=False)
class StepRequest:
    """Of a drag that waits for its next step."""

    run: DragRun
    taken: threading.Event = field(default_factory=threading.Event)
    outcome: DragStep | Exception | None = None

    def end(self, outcome: DragStep | Exception) -> None:
        self.outcome = outcome
        self.taken.set()


class DynamicBatcher:
    """Threads call `steps`; one other serves them."""

    def __init__(self, turn: RenderLock, threads: Callable[[], int]) -> None:
        """
        Args:
            turn: of those who come.
            threads: how many may compute the next step.
        """
        self.turn = turn
        self.threads = threads
        self.changed = threading.Condition()
        self.under_way = 0  # drags
        self.waiting: list[StepRequest] = []
        self.came = 0.0  # when the last one did
        self.batches: dict[tuple[DragRun, ...], DragBatch] = {}  # of the last round
        self.made = 0  # drags at most that have had a step in one round
        self.most = MAX_SLOTS  # drags whose steps fit into memory together, as far as is known

    def steps(self, run: DragRun) -> Steps:
        """A drag's, like `engine.drag.loop.steps`. Raises what its steps raise, alone or with others."""
        with self.dragging():
            yield from steps(run, lambda: self.advance(run))

    @contextmanager
    def dragging(self) -> Iterator[None]:
        with self.changed:
            self.under_way += 1
        try:
            yield
        finally:
            with self.changed:
                self.under_way -= 1
                self.changed.notify_all()

    def advance(self, run: DragRun) -> DragStep:
        place = StepRequest(run)
        with self.changed:
            self.waiting.append(place)
            self.came = time.monotonic()
            self.changed.notify_all()
        place.taken.wait()
        outcome = place.outcome
        assert outcome is not None
        if isinstance(outcome, DragStep):
            return outcome
        try:
            raise outcome
        finally:
            del outcome, place, run  # which the error's traceback would keep in memory

    def served(self) -> AbstractContextManager[None]:
        """Meanwhile a thread makes the steps of all who come."""

        def serve(over: threading.Event) -> None:
            while not over.is_set():
                self.serve(SERVE_S)

        return background_thread(serve, "steps")

    def serve(self, limit_s: float) -> None:
        """Make the next step of all who come, once they are there; nothing when nobody comes within limit_s."""
        places = self.gather(time.monotonic() + limit_s)
        before, self.batches = self.batches, {}
        torch.set_num_threads(self.threads())
        try:
            for group in groups(places, self.most):
                self.step(group, before)
            self.made = max(self.made, len(places))
        except Exception as error:  # a defect: nobody must wait for ever
            logger.exception("%d drags end: their steps cannot be made", len(places))
            for place in places:
                place.end(place.outcome or error)

    def gather(self, until: float) -> list[StepRequest]:
        """Waits for all drags under way, but not for those that wait for a server themselves."""
        with self.changed:
            while not self.waiting and time.monotonic() < until:
                self.changed.wait(until - time.monotonic())
            while self.waiting and len(self.waiting) < self.under_way and self.quiet_s() < IDLE_S:
                self.changed.wait(LOOK_S)
            places, self.waiting = self.waiting, []
        return places

    def quiet_s(self) -> float:
        """How long nobody has come, and nobody renders."""
        return min(self.turn.idle_s(), time.monotonic() - self.came)

    def step(self, places: Sequence[StepRequest], before: dict[tuple[DragRun, ...], DragBatch]) -> None:
        """Where a step fails that several make together, each makes it alone: one bad drag harms no other."""
        runs = tuple(place.run for place in places)
        told = self.try_step(runs, before)
        if not isinstance(told, Exception):
            for place, outcome in zip(places, told, strict=True):
                place.end(outcome)
        elif len(places) == 1:
            places[0].end(told)
        else:
            if is_out_of_memory(told):
                self.most = min(self.most, len(places) // 2)
            for place in places:
                self.step([place], before)

    def try_step(
        self, runs: tuple[DragRun, ...], before: dict[tuple[DragRun, ...], DragBatch]
    ) -> list[DragStep | DragDiverged] | Exception:
        """What went wrong is logged and returned without its traceback, whose frames would keep the failed step in memory."""
        try:
            batch = before.pop(runs, None) or make_batch(runs)
            told = batch.step()
            batch.differentiate()
        except Exception as error:
            logger.warning("a step of %d drags failed:\n%s", len(runs), traceback.format_exc())
            failed = error.with_traceback(None)
        else:
            self.batches[runs] = batch
            return told
        for run in runs:
            run.forget_step()
        return failed


def groups(places: Sequence[StepRequest], most: int) -> Iterator[Sequence[StepRequest]]:
    """Those that can make their step together, at most so many; those that compute more whole would slow the others."""
    kinds: dict[Hashable, list[StepRequest]] = {}
    for place in sorted(places, key=lambda place: (shape(place.run), id(place.run))):  # alike batches are alike recordings
        kinds.setdefault((place.run.kind, place.run.watched.whole), []).append(place)
    for same in kinds.values():
        size = min(most, most_at_once(same[0].run))
        yield from (same[first : first + size] for first in range(0, len(same), size))


def most_at_once(run: DragRun) -> int:
    whole = run.watched.whole == run.watched.until
    return WHOLE_MAPS if whole and run.start.device.type == "cpu" else MAX_SLOTS
