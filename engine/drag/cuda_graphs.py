"""Run iterations as CUDA graphs: capture an iteration's operations once, replay them for all drags of the same shape.

On a GPU an iteration is more than a thousand small operations, which take longer to start than to run. A graph starts all of
them at once, on the tensors that it was captured with: inputs are copied in, results are copied out. Off unless the device is
CUDA.
"""

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.drag.iteration_data import Evaluate, Evaluation, StepInputs
from engine.drag.run import DragRun
from engine.drag.solvers import SOLVERS

CAPTURED_AFTER = 3  # iterations of one shape: a capture costs as much
MOST_GRAPHS = 32  # of one synthesis network
logger = logging.getLogger(__name__)


class GraphOutputs(NamedTuple):
    """What a captured iteration leaves in its tensors."""

    handles: Tensor  # [K, 2] xy pixels
    losses: Tensor  # [N]
    gradients: list[Tensor]  # of each loss along that drag's w+, [1, L, D]


Program = Callable[[], GraphOutputs]
Capture = Callable[[Program], Program]  # returns a program that repeats the given program on the same tensors


def capture_cuda_graph(program: Program) -> Program:
    """Capture a program as a CUDA graph, and return the program that replays the graph."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch's stubs lack it
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        program()  # what libraries do at their first call cannot be captured
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=memory_pool(), capture_error_mode="thread_local"):  # other threads render meanwhile
        outputs = program()

    def replay() -> GraphOutputs:
        graph.replay()
        return outputs

    return replay


@cache
def memory_pool() -> Any:
    """Return the memory of all graphs: they are replayed one after another, and their outputs are copied."""
    return torch.cuda.graph_pool_handle()


class CudaGraphExecutor:
    """Replays iterations of drags once several of the same shape have come; evaluates the others one operation at a time."""

    def __init__(self, runs: Sequence[DragRun], capture: Capture = capture_cuda_graph) -> None:
        """Create the executor of a batch of these drags."""
        self.capture = capture
        self.shape = runs[0].batch_key, max(run.plan.whole for run in runs), tuple(run_shape(run) for run in runs)
        self.graphs: GraphCache = runs[0].synthesis.caches.setdefault("cuda_graphs", GraphCache())

    def __call__(self, evaluate: Evaluate, inputs: StepInputs) -> Evaluation:
        if inputs.joined is None or not all(inputs.moved):  # some drag starts
            return evaluate(inputs)
        with self.graphs.lock:
            step = self.graphs.get(self.shape, lambda: CapturedStep(evaluate, inputs, self.capture))
            return evaluate(inputs) if step is None else step.replay(inputs)


class CapturedStep:
    """An iteration of drags of one shape, captured on tensors of its own."""

    def __init__(self, evaluate: Evaluate, inputs: StepInputs, capture: Capture) -> None:
        own = inputs.clone()
        self.tensors = own.tensors()
        self.evaluate = evaluate  # a graph reads memory by its address: what the iteration refers to must live as long

        def program() -> GraphOutputs:
            evaluation = evaluate(own)
            gradients = torch.autograd.grad(evaluation.losses, own.ws)
            losses = torch.stack([loss.detach() for loss in evaluation.losses])
            return GraphOutputs(evaluation.handles, losses, list(gradients))

        self.program = capture(program)

    def replay(self, inputs: StepInputs) -> Evaluation:
        """Return the evaluation of other inputs of the same shape, with its gradients."""
        assert inputs.joined is not None
        with torch.no_grad():
            torch._foreach_copy_(self.tensors, inputs.tensors())
            outputs = self.program()
        return Evaluation(
            handles=outputs.handles.clone(),
            references=[reference for reference in inputs.references if reference is not None],
            joined=inputs.joined,
            losses=list(outputs.losses.clone().unbind()),
            gradients=[gradient.clone() for gradient in outputs.gradients],
        )


class GraphCache:
    """The captured steps of one synthesis network by shape; the least recently used is let go first."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # of the captured steps' tensors
        self.seen: Counter[Hashable] = Counter()
        self.steps: OrderedDict[Hashable, CapturedStep | None] = OrderedDict()  # None: capture failed

    def get(self, shape: Hashable, capture: Callable[[], CapturedStep]) -> CapturedStep | None:
        """Return the captured step of a shape; None for a shape that has not come often, and where capture fails."""
        if shape in self.steps:
            self.steps.move_to_end(shape)
            return self.steps[shape]
        self.seen[shape] += 1
        if self.seen[shape] <= CAPTURED_AFTER:
            return None
        try:
            self.steps[shape] = capture()
        except Exception:
            logger.warning("iterations run one operation at a time: they could not be captured", exc_info=True)
            self.steps.clear()  # memory may be what was lacking
            self.steps[shape] = None
        if len(self.steps) > MOST_GRAPHS:
            self.seen[self.steps.popitem(last=False)[0]] = 0
        return self.steps[shape]


def can_use_cuda_graphs(runs: Sequence[DragRun]) -> bool:
    """Return whether the drags are on a GPU, and their loss depends on nothing but a step's inputs."""
    capturable = SOLVERS[runs[0].options.solver].capturable
    return capturable and runs[0].start.is_cuda and all(run.options.latent_weight == 0 for run in runs)


def run_shape(run: DragRun) -> tuple[int, float, float, tuple[object, ...]]:
    """Return what a capture fixes of a drag beside its kind. Drags can be sorted by it."""
    options, mask = run.options, run.mask
    held = () if mask is None else (mask.early, mask.metric, mask.weight)
    return len(run.handles), options.anchor_distance, options.stop_distance, held
