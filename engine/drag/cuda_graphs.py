"""Steps recorded once and replayed.

On a GPU a step is more than a thousand small operations, which take longer to start than to run. A recording starts all of
them at once, on the tensors that it was made with: drags of the same shape copy theirs into these, and what comes of it
out again. Written for CUDA graphs with no GPU at hand: what it gains was not measured.
"""

import copy
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.drag.batch import DragBatch
from engine.drag.latent import EachRow
from engine.drag.mask_term import MaskTerm
from engine.drag.run import DragRun, Memory

RECORDED_AFTER = 3  # steps of one shape: a recording costs as much
MOST = 32  # shapes of a trunk's recordings
logger = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """What a step leaves of its drags."""

    handles: Tensor  # [K, 2] xy pixels, of all of them
    losses: Tensor  # [drags]
    gradients: list[Tensor]  # of each loss along that drag's w+, [1, L, D]


See = Callable[[], Outcome]
Record = Callable[[See], See]  # what was done once can be done again, on the same tensors


@cache
def pool() -> Any:
    """Of memory, for all recordings: they are replayed one after another, and what comes of them is copied."""
    return torch.cuda.graph_pool_handle()


def cuda_graph(see: See) -> See:
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's stubs lack it
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        see()  # what libraries do at their first call cannot be recorded
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool(), capture_error_mode="thread_local"):  # other threads draw frames background_thread
        outcome = see()

    def replay() -> Outcome:
        graph.replay()
        return outcome

    return replay


class RecordedStep:
    """Of drags of one shape, made with the tensors of others that stand in for them."""

    def __init__(self, runs: Sequence[DragRun], ws: Sequence[Tensor], record: Record) -> None:
        self.runs = [stand_in(run, w) for run, w in zip(runs, ws, strict=True)]
        self.handles = [run.handles for run in self.runs]
        self.inputs = [tensor for run in self.runs for tensor in inputs(run, run.variable)]
        self.batch = DragBatch(self.runs)
        self.replay = record(self.see)

    def see(self) -> Outcome:
        """Everything here is made of the inputs, each time."""
        for run, handles in zip(self.runs, self.handles, strict=True):
            run.handles, run.followed = handles, run.iteration - 1
        self.batch.targets, self.batch.memory = torch.cat([run.targets for run in self.runs]), None
        self.batch.supervise()
        self.batch.differentiate()
        gradients = [run.gradient for run in self.runs if isinstance(run.gradient, Tensor)]
        return Outcome(self.batch.handles(), torch.stack([run.loss.detach() for run in self.runs]), gradients)

    @torch.no_grad()
    def of(self, runs: Sequence[DragRun], ws: Sequence[Tensor]) -> Outcome:
        """These drags' step; w+ [1, L, D] of each."""
        theirs = [tensor for run, w in zip(runs, ws, strict=True) for tensor in inputs(run, w)]
        torch._foreach_copy_(self.inputs, theirs)
        handles, losses, gradients = self.replay()
        return Outcome(handles.clone(), losses.clone(), [gradient.clone() for gradient in gradients])


class ReplayedBatch(DragBatch):
    """Adam's drags, whose steps are recorded once several of the same shape have come."""

    def __init__(self, runs: Sequence[DragRun], record: Record = cuda_graph) -> None:
        super().__init__(runs)
        self.record = record
        self.shape = runs[0].kind, max(run.watched.whole for run in runs), tuple(shape(run) for run in runs)

    def supervise(self) -> None:
        recordings: Recordings = self.runs[0].trunk.beside.setdefault("recordings", Recordings())
        with recordings.lock:
            self.supervise_with(recordings)

    def supervise_with(self, recordings: "Recordings") -> None:
        recorded: RecordedStep | None = None
        if all(run.memory is not None and run.iteration > run.followed for run in self.runs):  # none of them begins
            recorded = recordings.get(self.shape, self.make)
        if recorded is None:
            super().supervise()
        else:
            self.take(recorded)

    def make(self) -> RecordedStep:
        return RecordedStep(self.runs, [run.latent().detach() for run in self.runs], self.record)

    def take(self, recorded: RecordedStep) -> None:
        """A step that is a replay."""
        ws = [run.latents() for run in self.runs]
        outcome = recorded.of(self.runs, [w.detach() for w in ws])
        found = torch.split(outcome.handles, self.counts)
        for run, w, handles, loss, gradient in zip(self.runs, ws, found, outcome.losses.unbind(), outcome.gradients, strict=True):
            run.handles, run.followed, run.loss = handles, run.iteration, loss
            [run.gradient], run.differentiate = torch.autograd.grad(w, run.varied, gradient), None

    def differentiate(self) -> None:
        if any(run.gradient is None for run in self.runs):
            super().differentiate()


def can_replay(runs: Sequence[DragRun]) -> bool:
    """Where starting operations is what costs, and the points and the mask are all that is descended."""
    return runs[0].start.is_cuda and all(run.options.latent_weight == 0 for run in runs)


class Recordings:
    """Of one trunk's drags, by shape, the least recently used let go first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of their tensors
        self.seen: Counter[Hashable] = Counter()
        self.made: OrderedDict[Hashable, RecordedStep | None] = OrderedDict()  # None: it cannot be made

    def get(self, shape: Hashable, make: Callable[[], RecordedStep]) -> RecordedStep | None:
        """None for shapes that have not come often, and where recording fails."""
        if shape in self.made:
            self.made.move_to_end(shape)
            return self.made[shape]
        self.seen[shape] += 1
        if self.seen[shape] <= RECORDED_AFTER:
            return None
        try:
            self.made[shape] = make()
        except Exception:
            logger.warning("steps are made one operation at a time: they could not be recorded", exc_info=True)
            self.made.clear()  # it may be for their memory
            self.made[shape] = None
        if len(self.made) > MOST:
            self.seen[self.made.popitem(last=False)[0]] = 0
        return self.made[shape]


def shape(run: DragRun) -> tuple[int, float, float, tuple[object, ...]]:
    """What is fixed in a recording, beside its drags' kind; drags can be sorted by it."""
    how, mask = run.options, run.mask
    held = () if mask is None else (mask.early, mask.metric, mask.weight)
    return len(run.handles), how.anchor_distance, how.stop_distance, held


def inputs(run: DragRun, w: Tensor) -> list[Tensor]:
    """All that a step of it is made of; w+ [1, L, D]."""
    assert run.memory is not None
    own = [w, run.handles, run.centers, run.targets, run.memory.reference, run.memory.discs, *run.memory.held]
    return own if run.mask is None else [*own, *run.mask.shares]


def stand_in(run: DragRun, w: Tensor) -> DragRun:
    """A drag of the same shape with tensors of its own, which may change all of w+ [1, L, D]."""
    assert run.memory is not None
    other = copy.copy(run)
    other.options = replace(run.options, trainable_layers=w.shape[1])
    other.start, other.region, other.variable = w.clone(), EachRow(w), w.clone().requires_grad_()
    other.varied = other.variable
    other.handles, other.centers, other.targets = run.handles.clone(), run.centers.clone(), run.targets.clone()
    memory, mask = run.memory, run.mask
    other.memory = Memory(memory.reference.clone(), memory.discs.clone(), [one.clone() for one in memory.held])
    if isinstance(mask, MaskTerm):
        other.mask = replace(mask, shares=[share.clone() for share in mask.shares])
    other.solver = None  # type: ignore[assignment]  # nothing of the job's stays in memory
    other.best, other.loss, other.gradient, other.differentiate = None, run.loss.detach(), None, None
    return other
