"""DragGAN's loop (Pan et al., SIGGRAPH 2023): follow the handle points, then move them one step towards their targets.

Handles and targets are (x, y) in pixels of the model's image, pixel centers at integers. The movable mask is True where
pixels may change. Several drags can make each step together, which costs less than making it one by one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from engine.drag.batch import DragBatch, GaussNewtonBatch
from engine.drag.cuda_graphs import ReplayedBatch, can_replay
from engine.drag.options import DragOptions
from engine.drag.run import DragRun, DragStep, Steps
from engine.networks.stylegan2 import Generator


def drag(
    generator: Generator,
    w: Tensor,
    handles: Tensor,
    targets: Tensor,
    *,
    movable: Tensor | None = None,
    options: DragOptions | None = None,
) -> Iterator[DragStep]:
    """Yield one step for each iteration, and the best one once more with its stop reason.

    Args:
        generator: frozen: what is made of its weights is kept for further drags.
        w: where to start, [1, L, D].
        handles, targets: [K, 2] xy pixels; handles[i] is pulled towards targets[i].
        movable: [R, R] bool, True where the picture may change; None: everywhere.

    Raises:
        InvalidEdit: the arguments do not fit the generator or each other.
        DragDiverged: the loss became infinite or NaN.
    """
    run = DragRun(generator, w, handles, targets, movable, options or DragOptions())
    yield from steps(run)


def steps(run: DragRun, advance: Callable[[], DragStep] | None = None) -> Steps:
    """Make steps until there is a reason to stop; ends with the best one once more.

    Args:
        advance: how a step is made, with others or in another way; default: alone.

    Raises:
        DragDiverged: the loss became infinite or NaN.
    """
    advance = advance or make_batch([run]).advance
    try:
        while (reason := run.note(step := advance())) is None:
            yield step
            run.descend()
        yield step
        assert run.best is not None
        yield replace(run.best, stop_reason=reason)
    finally:
        run.forget_step()


def make_batch(runs: Sequence[DragRun]) -> DragBatch:
    """Of drags of one kind."""
    if runs[0].options.solver == "gauss-newton":
        return GaussNewtonBatch(runs)
    return ReplayedBatch(runs) if can_replay(runs) else DragBatch(runs)


def to_points(points: np.ndarray | list[tuple[float, float]]) -> Tensor:
    """xy pixels as a [K, 2] tensor."""
    return torch.as_tensor(np.asarray(points, dtype=np.float64)).reshape(-1, 2)
