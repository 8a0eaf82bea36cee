"""Drags that make their steps together go as each would alone."""

import weakref
from dataclasses import replace

import pytest
import torch

from engine.drag.loop import DragBatch, SingleStepper, drag, make_batch, to_points
from engine.drag.loop import steps as steps_of
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from engine.errors import DragDiverged
from tests.generators import reference_generator, tiny_generator

HANDLES = [[20.0, 30.0], [41.25, 33.5], [2.0, 60.0]]
TARGETS = [[31.0, 27.0], [40.0, 44.0], [9.0, 52.0]]
DEFAULT = {"anchor_distance": 90.0, "overstep": False, "context_blocks": 2, "mask_metric": "l2"}


@pytest.fixture(scope="module")
def exact():
    """The reference generator in float64."""
    return reference_generator().double()


def arguments(generator, slot, **options):
    """Of a drag with 1 to 3 points; each has another beginning, other points, another mask and rate."""
    points = slice(slot % 3, None)
    movable = torch.zeros(64, 64, dtype=torch.bool)
    movable[8 + slot : 50, 6 : 60 - slot] = True
    how = DragOptions(learning_rate=0.01 + 0.002 * slot, mask_weight=20.0 + slot, stop_distance=0.1, **options)
    return generator, generator.map(seed=slot), to_points(HANDLES[points]), to_points(TARGETS[points]), movable, how


def iterate(runs, count):
    """The batch after so many whole iterations."""
    batch = make_batch(runs)
    for _ in range(count):
        for run, step in zip(runs, batch.step(), strict=True):
            run.record(step)
        for run, update in zip(runs, batch.updates(), strict=True):
            run.take_step(update)
    return batch


def advance(runs, count):
    """The steps that follow after so many whole iterations."""
    return iterate(runs, count).step()


def alone(run, iteration):
    [step] = advance([run], iteration)
    return step


@pytest.mark.parametrize(
    ("masked", "options"),
    [
        (False, {"feature_resolution": 64}),
        (False, {"feature_resolution": 64, **DEFAULT}),
        (False, {"feature_resolution": 64, "latent_space": "pca:3", "latent_weight": 0.3}),
        (False, {"feature_resolution": 32, **DEFAULT, "solver": "gauss-newton"}),
        (True, {"feature_resolution": 32, **DEFAULT}),
        (True, {"feature_resolution": 64, "mask_term": "early"}),
    ],
)
def test_in_float64_each_agrees_with_itself_alone(exact, masked, options):
    def run(slot):
        given = arguments(exact, slot, **options)
        return DragRun(*(given if masked else (*given[:4], None, given[5])))

    together = advance([run(slot) for slot in range(5)], 10)
    for slot, step in enumerate(together):
        expected = alone(run(slot), 10)
        assert step.iteration == 10
        torch.testing.assert_close(step.w, expected.w, atol=1e-9, rtol=0)
        torch.testing.assert_close(step.handles, expected.handles, atol=1e-9, rtol=0)
        assert (step.distance_px, step.mean_distance_px) == pytest.approx((expected.distance_px, expected.mean_distance_px))


def test_one_that_comes_later_goes_as_it_would_alone(exact):
    first, second = (DragRun(*arguments(exact, slot)) for slot in (0, 1))
    iterate([first], 5)
    early, late = advance([first, second], 3)
    assert (early.iteration, late.iteration) == (8, 3)
    torch.testing.assert_close(early.w, alone(DragRun(*arguments(exact, 0)), 8).w, atol=1e-9, rtol=0)
    torch.testing.assert_close(late.w, alone(DragRun(*arguments(exact, 1)), 3).w, atol=1e-9, rtol=0)


def test_jacobians_are_made_anew_for_some_while_others_learn(exact):
    """One joins three, whose Jacobians are then two steps old."""

    def run(slot):
        generator, w, handles, targets, _, options = arguments(exact, slot, **DEFAULT, solver="gauss-newton")
        return DragRun(generator, w, handles, targets, None, options)

    early = [run(slot) for slot in range(3)]
    iterate(early, 3)
    *steps, late = advance([*early, run(3)], 4)
    for slot, step in enumerate([*steps, late]):
        expected = alone(run(slot), step.iteration)
        assert step.iteration == (4 if step is late else 7)
        torch.testing.assert_close(step.w, expected.w, atol=1e-9, rtol=0)
        torch.testing.assert_close(step.handles, expected.handles, atol=1e-9, rtol=0)


@pytest.mark.parametrize("solver", ["adam", "gauss-newton"])
def test_a_drag_that_is_over_keeps_nothing_in_memory(exact, solver):
    generator, w, handles, targets, _, options = arguments(exact, 0, **DEFAULT, solver=solver, max_iterations=2)
    run = DragRun(generator, w, handles, targets, None, options)
    batch = make_batch([run])
    assert [step.iteration for step in steps_of(run, SingleStepper(batch))] == [0, 1, 2, 2]
    _, evaluation = batch.computed
    loss = weakref.ref(evaluation.losses[0])
    del batch, evaluation, _
    assert loss() is None
    kept = [value for part in (run, run.solver, run.reference) for value in vars(part).values()]
    assert [value.grad_fn for value in kept if isinstance(value, torch.Tensor) and value.grad_fn is not None] == []


def test_one_that_diverges_harms_no_other(exact):
    good, bad = (DragRun(*arguments(exact, slot)) for slot in (0, 1))
    with torch.no_grad():
        bad.solver.variable.fill_(float("nan"))
    together = DragBatch([good, bad])
    told = together.step()
    good.take_step(together.updates()[0])
    assert isinstance(told[1], DragDiverged)
    expected = DragRun(*arguments(exact, 0))
    alone(expected, 1)
    torch.testing.assert_close(good.current_w(), expected.current_w(), atol=1e-9, rtol=0)


def test_drags_of_different_kinds_do_not_mix(exact):
    generator, w, handles, targets, _, options = arguments(exact, 0)
    wider = replace(options, motion_radius=12.0)
    with pytest.raises(ValueError, match="of one kind"):
        DragBatch([DragRun(generator, w, handles, targets, None, how) for how in (options, wider)])


def test_a_generators_drags_share_what_is_made_of_its_weights():
    generator = tiny_generator()
    points = to_points([[5, 5]]), to_points([[9, 9]])
    one, other = (DragRun(generator, generator.map(seed=seed), *points, None, DragOptions()) for seed in (1, 2))
    assert one.synthesis is other.synthesis
    assert one.batch_key == other.batch_key


def test_a_drag_alone_and_a_batch_of_one_give_the_same_bytes():
    generator = reference_generator()
    given = arguments(generator, 2)
    *_, expected = drag(*given[:4], movable=given[4], options=replace(given[5], max_iterations=5))
    run = DragRun(*given)
    [step] = advance([run], expected.iteration)
    assert torch.equal(step.w, expected.w)
