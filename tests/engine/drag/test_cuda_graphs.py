import gc
import weakref
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from engine.drag.cuda_graphs import CAPTURED_AFTER, CapturedStep, CudaGraphExecutor, GraphOutputs
from engine.drag.loop import DragBatch, to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from tests.generators import reference_generator, some_w

WAITS = ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__", "new_tensor")


@pytest.fixture(scope="module")
def exact():
    """The reference generator of 64 px in float64."""
    return reference_generator().double()


def mask():
    movable = torch.zeros(64, 64, dtype=torch.bool)
    movable[8:50, 10:60] = True
    return movable


OPTIONS = DragOptions(feature_resolution=32, learning_rate=0.02, context_blocks=1, overstep=False, stop_distance=0.1)
CASES = {
    "no mask": (OPTIONS, None),
    "alike rows": (replace(OPTIONS, latent_space="w"), None),
    "paper's mask": (replace(OPTIONS, mask_metric="l2"), mask()),
    "early mask": (replace(OPTIONS, mask_term="early", feature_resolution=64, trainable_layers=4), mask()),
    "whole pixels": (replace(OPTIONS, overstep=True, subpixel=False, tracking_metric="l1"), None),
}


def drags(generator, options, movable, count=2):
    points = [[[20, 20]], [[33, 30], [25, 41]]]
    found = []
    for number in range(count):
        handles = to_points(points[number % 2])
        w = some_w(generator) * (1 + 0.01 * number)
        found.append(DragRun(generator, w, handles, handles + 8, movable, options))
    return found


def operations(see):
    """Captures as a CUDA graph does: the same operations on the same tensors, and no others."""
    program = make_fx(lambda: tuple(flat(see())))()

    def replay():
        with torch.no_grad():
            handles, losses, *gradients = program()
        return GraphOutputs(handles, losses, gradients)

    return replay


def flat(outcome):
    return [outcome.handles, outcome.losses, *outcome.gradients]


def advance(batch, steps):
    """w+ of each drag after so many steps, all of which must be numbers."""
    for _ in range(steps):
        batch.step()
        for run, update in zip(batch.runs, batch.updates(), strict=True):
            run.take_step(update)
    return torch.cat([run.current_w() for run in batch.runs])


def captured_batch(runs, capture=None):
    """A batch that captures its iterations, as operations where nothing else is said."""
    return DragBatch(runs, executor=CudaGraphExecutor(runs, capture or operations))


@pytest.mark.parametrize("case", CASES)
def test_replayed_steps_are_the_steps(exact, case):
    options, movable = CASES[case]
    expected = advance(DragBatch(drags(exact, options, movable)), 9)
    batch = captured_batch(drags(exact, options, movable))
    found = advance(batch, 9)
    assert isinstance(batch.executor.graphs.steps[batch.executor.shape], CapturedStep)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


class CountedCapture:
    """Captures programs, and counts their replays."""

    def __init__(self):
        self.replays = 0

    def __call__(self, program):
        replay = operations(program)

        def counted():
            self.replays += 1
            return replay()

        return counted


def refuse(program):
    raise AssertionError("nothing is to be captured")


def captured_shape(generator, options):
    """A capture of the shape that `drags` have, which has been replayed once."""
    capture = CountedCapture()
    advance(captured_batch(drags(generator, options, None), capture), CAPTURED_AFTER + 2)
    assert capture.replays == 1
    return capture


def test_others_of_the_same_shape_use_the_same_capture(exact):
    options = replace(OPTIONS, motion_radius=3.5)
    capture = captured_shape(exact, options)
    others, same = ([replace_w(run, exact) for run in drags(exact, options, None)] for _ in range(2))
    found, expected = advance(captured_batch(others, refuse), 6), advance(DragBatch(same), 6)
    assert capture.replays == 1 + 5  # the step with which they begin is their own
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_drags_that_meet_later_are_replayed_from_their_first_step_together(exact):
    options = replace(OPTIONS, motion_radius=5.5)
    capture = captured_shape(exact, options)
    met, alone = drags(exact, options, None), drags(exact, options, None)
    for run in (*met, *alone):
        advance(DragBatch([run]), 2)
    found = advance(captured_batch(met, refuse), 1)
    assert capture.replays == 2
    torch.testing.assert_close(found, torch.cat([advance(DragBatch([run]), 1) for run in alone]), atol=1e-9, rtol=0)


def replace_w(run, generator):
    """The same drag of another picture."""
    w = some_w(generator).flip(1)
    return DragRun(generator, w, run.handles, run.targets, None, run.options)


def test_where_capture_fails_steps_are_made_one_by_one(exact, caplog):
    def fail(see):
        raise RuntimeError("this device captures nothing")

    options = replace(OPTIONS, learning_rate=0.03, motion_radius=4.0)
    expected = advance(DragBatch(drags(exact, options, None)), 7)
    found = advance(captured_batch(drags(exact, options, None), fail), 7)
    assert torch.equal(found, expected)
    assert caplog.text.count("could not be captured") == 1


@pytest.mark.parametrize("case", CASES)
def test_a_captured_step_neither_waits_for_the_host_nor_takes_anything_from_it(exact, case):
    options, movable = CASES[case]

    def see_blind(see):
        with blind():
            outcome = see()
        return lambda: outcome

    batch = DragBatch(drags(exact, options, movable))
    advance(batch, 1)
    CapturedStep(batch.iteration.evaluate, batch.inputs(), see_blind)


def test_the_test_of_waiting_sees_one_that_waits():
    with pytest.raises(AssertionError, match="tolist"), blind():
        torch.ones(2).tolist()
    numbers, chosen = torch.arange(3), torch.arange(3) > 1
    with pytest.raises(AssertionError, match="booleans"), blind():
        numbers[chosen]


def test_a_capture_keeps_alive_what_its_operations_read(exact):
    """A graph reads memory by its address; a freed tensor's memory may be another's by the time of a replay."""

    def forget_program(program):
        outputs = program()
        return lambda: outputs

    batch = DragBatch(drags(exact, OPTIONS, None))
    advance(batch, 1)
    step = CapturedStep(batch.iteration.evaluate, batch.inputs(), forget_program)
    constants = [weakref.ref(tensor) for tensor in (batch.iteration.offsets, batch.iteration.anchor_px, batch.iteration.stop_px)]
    del batch
    gc.collect()
    assert None not in [constant() for constant in constants]
    del step
    gc.collect()
    assert {constant() for constant in constants} == {None}


def test_a_model_that_is_let_go_takes_its_captures_along():
    generator = reference_generator().double()
    runs = drags(generator, OPTIONS, None)
    advance(captured_batch(runs), CAPTURED_AFTER + 2)
    synthesis = weakref.ref(runs[0].synthesis)
    gc.collect()
    gc.disable()  # nothing comes to clear a circle up
    try:
        del runs, generator
        assert synthesis() is None
    finally:
        gc.enable()


@contextmanager
def blind():
    """Whatever makes a GPU's host wait, or brings its numbers there, fails."""

    def refuse(name):
        def call(*_, **__):
            raise AssertionError(f"{name} waits for the host")

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in WAITS:
            patch.setattr(torch.Tensor, name, refuse(name))
        for name in ("tensor", "as_tensor", "from_numpy"):
            patch.setattr(torch, name, refuse(name))
        with Blind():
            yield


class Blind(TorchDispatchMode):
    """The same of what operations do inside."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select"), f"{name} waits for the host"
        if name == "index":
            assert all(one is None or one.dtype != torch.bool for one in args[1]), "an index of booleans waits for the host"
        return func(*args, **(kwargs or {}))


def test_a_drag_that_begins_makes_its_first_step_by_itself(exact):
    options = replace(OPTIONS, anchor_distance=5.0)
    capture = captured_shape(exact, options)
    late, early = drags(exact, options, None)
    advance(DragBatch([early]), 2)
    advance(captured_batch([late, early], refuse), 4)
    assert capture.replays == 1 + 3
    alone = [advance(DragBatch([run]), steps) for run, steps in zip(drags(exact, options, None), (4, 6), strict=True)]
    torch.testing.assert_close(torch.cat([late.current_w(), early.current_w()]), torch.cat(alone), atol=1e-9, rtol=0)
