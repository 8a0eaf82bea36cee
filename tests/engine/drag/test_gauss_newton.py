"""Steps that go as far as they should."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from engine.drag.feature_pass import compute_features
from engine.drag.features import FeatureMap, disc_offsets
from engine.drag.gauss_newton import RENEWED_EVERY, GaussNewton, PointEvidence, read_surroundings
from engine.drag.iteration_data import Points
from engine.drag.loop import drag, make_batch, steps, to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun, DragState
from engine.errors import DragDiverged, InvalidEdit
from tests.generators import reference_generator

HANDLES, TARGETS = to_points([[20, 30], [41.25, 33.5]]), to_points([[26, 27], [40, 37]])
OPTIONS = DragOptions(
    solver="gauss-newton", feature_resolution=32, motion_radius=6.0, context_blocks=2, anchor_distance=90.0, overstep=False
)


@pytest.fixture(scope="module")
def exact():
    """The reference generator in float64."""
    return reference_generator().double()


def waves(shift):
    """[1, 6, 32, 32] features of an image of 64 px, moved by (x, y) pixels."""
    cells = torch.arange(32, dtype=torch.float64) * 2 + 0.5
    x, y = torch.meshgrid(cells - shift[0], cells - shift[1], indexing="xy")
    return FeatureMap.whole(
        torch.stack([f((a * x + b * y) / 9) for a, b in ((1, 0), (0, 1), (1, 1)) for f in (torch.sin, torch.cos)])[None]
    )


def points_at(handles, offsets):
    """Points of an image of 64 px."""
    return Points(
        handles=handles, targets=handles, anchored=torch.zeros(len(handles), dtype=torch.bool),
        stop_px=torch.zeros(len(handles)), reference=None, offsets=offsets, resolution=64, counts=[len(handles)],
    )  # fmt: skip


@pytest.mark.parametrize("shift", [(0.3, 0.0), (-0.2, 0.5)])
def test_surroundings_tell_how_far_they_have_moved(shift):
    points = points_at(to_points([[30, 31]]), disc_offsets(12.0, 0.25, HANDLES))
    before, after = (read_surroundings([waves(by)], points) for by in ((0, 0), shift))
    assert after.shift(after.features - before.features)[0].tolist() == pytest.approx(shift, abs=0.02)


def test_a_point_on_an_edge_is_doubted_along_it():
    x = torch.arange(32, dtype=torch.float64).expand(1, 1, 32, 32)
    points = points_at(to_points([[30, 31]]), disc_offsets(12.0, 0.25, HANDLES))
    [[across, _], [_, along]] = read_surroundings([FeatureMap.whole(x)], points).covariance[0]
    assert (across.item(), along.item() > 100) == (pytest.approx(0.5, rel=0.01), True)


@pytest.mark.parametrize("latent_space", ["w+", "w", "pca:7"])
def test_the_jacobian_is_how_surroundings_move_with_the_variable(exact, latent_space):
    run = DragRun(exact, exact.map(seed=3), HANDLES, TARGETS, None, replace(OPTIONS, latent_space=latent_space))
    batch = make_batch([run])
    batch.step()
    around = batch.iteration.objective.surroundings
    [evidence] = batch.updates()
    direction = torch.randn_like(run.solver.variable) * 1e-6
    run.solver.variable += direction
    with torch.no_grad():
        features = compute_features(run.synthesis, run.plan, run.current_w(), run.centers, run.resolution)
        after = read_surroundings(features.maps, points_at(run.handles, run.offsets))
    moved = around.shift(after.features - around.features)
    expected = evidence.jacobian.flatten(1) @ direction.flatten()
    torch.testing.assert_close(moved.flatten(), expected, rtol=1e-3, atol=1e-12)


def test_a_step_goes_where_the_points_should_be_and_no_farther_in_w_than_it_must():
    variable, jacobian = torch.zeros(1, 2, 3), torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1))
    solver = GaussNewton(variable, torch.diag(torch.tensor([3.0, 2.0, 1.0])), 2, 1 / 4)
    solver.noise_px = 1e-3
    rest, doubt = torch.tensor([[0.5, 0.0], [0.0, -1.0]]), torch.eye(2).expand(2, 2, 2)
    moves = solver.step(PointEvidence(rest, doubt, jacobian))
    torch.testing.assert_close(moves, rest, atol=1e-3, rtol=0)
    torch.testing.assert_close((jacobian.flatten(1) @ variable.flatten()).view(2, 2), rest, atol=1e-3, rtol=0)
    spread = jacobian.flatten(1) * torch.tensor([3.0, 2.0, 1.0] * 2)
    shortest = torch.linalg.lstsq(spread, rest.flatten(), driver="gelsd").solution
    torch.testing.assert_close(solver.offset, shortest, atol=1e-2, rtol=0)


def test_no_point_is_asked_to_go_too_far_at_once():
    solver = GaussNewton(torch.zeros(1, 1, 4), torch.eye(4), 2, 1 / 4)
    solver.noise_px = 1e-6
    rest = torch.tensor([[30.0, 0.0], [0.0, 1.0]])
    moves = solver.step(PointEvidence(rest, torch.eye(2).expand(2, 2, 2), torch.eye(4).view(4, 1, 4)))
    torch.testing.assert_close(moves, torch.tensor([[2.0, 0.0], [0.0, 1.0]]))


def test_between_two_jacobians_it_learns_from_how_the_points_moved():
    solver = GaussNewton(torch.zeros(1, 1, 4), torch.eye(4), 1, 1.0)
    moves = solver.step(PointEvidence(torch.tensor([[2.0, 1.0]]), torch.eye(2)[None], torch.eye(4)[:2].view(2, 1, 4)))
    surprise = torch.tensor([[0.5, -0.25]])
    solver.learn(surprise)
    torch.testing.assert_close(solver.jacobian @ solver.last, (moves + surprise).flatten())
    assert [len(solver.pass_variables()), solver.pass_variables().requires_grad] == [1, False]


def test_only_the_trainable_rows_move(exact):
    w = exact.map(seed=3)
    step = [*drag(exact, w, HANDLES, TARGETS, options=replace(OPTIONS, trainable_layers=4, max_iterations=2))][-1]
    assert torch.equal(step.w[:, 4:], w[:, 4:])
    assert (step.w[:, :4] != w[:, :4]).any(dim=2).all()


def test_a_step_of_almost_nothing_teaches_little():
    solver = GaussNewton(torch.zeros(1, 1, 4), torch.eye(4), 1, 1.0)
    solver.last = torch.full((4,), 1e-20)
    solver.learn(torch.tensor([[0.3, 0.3]]))
    assert solver.jacobian.abs().max() < 1e-9


def test_a_step_that_is_no_number_ends_as_one(exact):
    good, bad = (DragRun(exact, exact.map(seed=seed), HANDLES, TARGETS, None, OPTIONS) for seed in (3, 4))
    batch = make_batch([good, bad])
    batch.step()
    fine, broken = batch.updates()
    good.take_step(fine)
    bad.take_step(replace(broken, jacobian=broken.jacobian * float("nan")))
    step, error = batch.step()
    assert (step.iteration, type(error)) == (1, DragDiverged)
    assert step.w.isfinite().all()


def test_a_point_that_should_have_left_the_image_is_no_surprise(exact):
    """It is looked for at the border, and what the border holds back teaches nothing about w."""
    run = DragRun(exact, exact.map(seed=3), to_points([[0.2, 30.0]]), to_points([[0.0, 30.0]]), None, OPTIONS)
    batch = make_batch([run])
    batch.step()
    [evidence] = batch.updates()
    before = run.handles
    run.take_step(replace(evidence, remaining=torch.tensor([[-2.0, 0.0]], dtype=torch.float64)))
    moved = (run.solver.jacobian @ run.solver.last).view(1, 2)
    assert run.handles[0, 0] < 0 == run.centers[0, 0]
    torch.testing.assert_close(run.handles - before, moved)


@pytest.mark.parametrize(
    ("left_at", "options"),
    [
        *((left_at, {}) for left_at in (0, 1, RENEWED_EVERY, 5)),
        (2, {"latent_space": "w"}),
        (2, {"latent_space": "pca:7"}),
        (2, {"precision": "bfloat16"}),
    ],
)
def test_a_drag_taken_up_elsewhere_ends_with_the_same_bytes(left_at, options):
    generator = reference_generator()
    how = replace(OPTIONS, max_iterations=8, stop_distance=0.01, **options)
    arguments = (generator.map(seed=3), HANDLES, TARGETS, None, how)
    whole = list(steps(DragRun(generator, *arguments)))
    left = DragRun(generator, *arguments)
    next(step for step in steps(left) if step.iteration == left_at)
    again = DragRun(generator, *arguments)
    again.restore(DragState.read(load(save(left.state().tensors()))))
    rest = list(steps(again))
    assert [step.iteration for step in rest] == [step.iteration for step in whole[left_at:]]
    for one, other in zip(rest, whole[left_at:], strict=True):
        assert torch.equal(one.w, other.w)
        assert torch.equal(one.handles, other.handles)


def test_it_says_that_it_goes_by_points_alone(exact):
    w, movable = exact.map(seed=3), torch.ones(64, 64, dtype=torch.bool)
    with pytest.raises(InvalidEdit, match="goes by the points alone"):
        DragRun(exact, w, HANDLES, TARGETS, movable, OPTIONS)
    with pytest.raises(InvalidEdit, match="latent_weight of 0"):
        DragRun(exact, w, HANDLES, TARGETS, None, replace(OPTIONS, latent_weight=0.1))
