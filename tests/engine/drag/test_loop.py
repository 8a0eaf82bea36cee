import copy
import itertools
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

from engine.drag.features import FeatureMap
from engine.drag.loop import DragBatch, drag, steps, to_points
from engine.drag.mask_term import early_shares, feature_block_shares
from engine.drag.options import DragOptions
from engine.drag.run import DragRun, DragState
from engine.drag.tracking import track_points
from engine.errors import DragDiverged, InvalidEdit
from engine.networks.latent_statistics import latent_statistics
from engine.networks.stylegan2 import modulate
from tests.engine.drag.plain import plain_drag, plain_features
from tests.generators import reference_generator, some_w, tiny_generator

HANDLES, TARGETS = [[20.0, 30.0], [41.25, 33.5]], [[31.0, 27.0], [40.0, 44.0]]


@pytest.fixture(scope="module")
def exact():
    """The reference generator in float64."""
    return reference_generator().double()


def after(steps, iteration):
    return next(step for step in itertools.islice(steps, iteration + 1) if step.iteration == iteration)


@pytest.mark.parametrize("preset", ["reference", "default"])
@pytest.mark.parametrize(("block", "masked"), [(32, True), (64, False)])
def test_ten_steps_agree_with_the_plain_drag_in_float64(exact, masked, block, preset):
    w = some_w(exact)
    movable = torch.zeros(64, 64, dtype=torch.bool)
    movable[10:51, 7:58] = True
    options = DragOptions(learning_rate=0.01, latent_weight=0.3, stop_distance=0.1, feature_resolution=block)
    if preset == "default":  # both of the points' distances are met: one begins nearer than 11 px
        options = replace(options, anchor_distance=90.0, overstep=False, context_blocks=2, mask_metric="l2")
    steps = drag(exact, w, to_points(HANDLES), to_points(TARGETS), movable=movable if masked else None, options=options)
    step = after(steps, 10)
    fixed = (~movable).double() if masked else None
    plain_w, plain_handles = plain_drag(exact, w, HANDLES, TARGETS, fixed, options, 10)
    assert (plain_w - w).abs().max() > 0.02
    torch.testing.assert_close(step.w, plain_w, atol=1e-9, rtol=0)
    torch.testing.assert_close(step.handles, torch.tensor(plain_handles, dtype=torch.float64), atol=1e-9, rtol=0)


def test_the_gradient_in_float32_is_that_of_float64(exact):
    w = some_w(exact)

    def gradient(generator):
        run = DragRun(generator, w, to_points(HANDLES), to_points(TARGETS), None, DragOptions())
        batch = DragBatch([run])
        batch.step()
        [gradient] = batch.updates()
        return gradient.double()

    expected = gradient(exact)
    assert (gradient(reference_generator()) - expected).norm() / expected.norm() < 1e-4


def test_features_agree_with_per_sample_weights(exact):
    w = some_w(exact)
    layers = exact.synthesis.layers(until=32, rgb=False)
    torch.testing.assert_close(
        exact.synthesis.features(modulate(layers, w), 32), plain_features(exact, w, 32), atol=1e-10, rtol=0
    )


def test_only_the_trainable_rows_move(exact):
    w = some_w(exact)
    step = after(drag(exact, w, to_points(HANDLES), to_points(TARGETS), options=DragOptions(trainable_layers=4)), 3)
    assert torch.equal(step.w[:, 4:], w[:, 4:])
    assert (step.w[:, :4] != w[:, :4]).all(dim=2).all()


def test_latent_space_w_moves_all_rows_alike(exact):
    w = some_w(exact)
    step = after(drag(exact, w, to_points(HANDLES), to_points(TARGETS), options=DragOptions(latent_space="w")), 3)
    change = (step.w - w)[0, :6]
    assert change.abs().max() > 0
    torch.testing.assert_close(change, change[:1].expand(6, -1))


@pytest.mark.parametrize("term", ["paper", "early"])
def test_the_mask_holds_what_is_fixed(exact, term):
    w, left = some_w(exact), torch.zeros(64, 64, dtype=torch.bool)
    left[:, :32] = True
    points = to_points([[12.0, 30.0]]), to_points([[20.0, 30.0]])

    def change_on_the_right(movable):
        step = after(drag(exact, w, *points, movable=movable, options=DragOptions(learning_rate=0.01, mask_term=term)), 20)
        return (exact.images(step.w) - exact.images(w))[..., 40:].abs().mean()

    assert change_on_the_right(left) < 0.5 * change_on_the_right(None)


def test_a_fixed_cell_weighs_its_share():
    movable = torch.ones(8, 8, dtype=torch.bool)
    movable[0, 0:3] = False
    assert feature_block_shares(movable, 4, like=torch.zeros(1))[0].flatten()[:3].tolist() == [0.5, 0.25, 0.0]


def test_an_early_cell_weighs_the_share_of_its_field():
    movable = torch.ones(64, 64, dtype=torch.bool)
    movable[:, :32] = False
    finer, coarser = early_shares(movable, like=torch.zeros(1))
    assert finer[0, 0, 16].tolist() == pytest.approx([1.0] * 13 + [k / 7 for k in range(6, 0, -1)] + [0.0] * 13)
    assert coarser.shape == (1, 1, 16, 16)


def test_the_early_mask_knows_when_it_would_miss_something(exact):
    movable = torch.zeros(64, 64, dtype=torch.bool)
    movable[20:40, 20:40] = True
    points = to_points([[20.0, 30.0]]), to_points([[25.0, 30.0]])
    with pytest.raises(InvalidEdit, match="first 6 rows change, trainable_layers is 7"):
        DragRun(exact, some_w(exact), *points, movable, DragOptions(mask_term="early", trainable_layers=7))
    with pytest.raises(InvalidEdit, match="at least 32, got 16"):
        DragRun(exact, some_w(exact), *points, movable, DragOptions(mask_term="early", feature_resolution=16))
    small = tiny_generator(32)
    with pytest.raises(InvalidEdit, match="at least 64 px, got skip of 32 px"):
        DragRun(small, some_w(small), *points, movable[:32, :32], DragOptions(mask_term="early"))


def blob(x: float, y: float, size: int = 64) -> FeatureMap:
    """Three channels with a bump at a point of a 64-pixel image."""
    line = torch.arange(size, dtype=torch.float64)
    bump = torch.exp(-((line[None, :] - x) ** 2 + (line[:, None] - y) ** 2) / 18)
    return FeatureMap.whole(torch.stack([bump, bump**2, 1 - bump])[None])


@pytest.mark.parametrize("metric", ["l1", "l2"])
def test_tracking_finds_a_shifted_blob(metric):
    reference = blob(20, 30).values[:, :, 30, 20]
    found = track_points([blob(25, 27)], reference, to_points([[20, 30]]), 64, radius=6, metric=metric, subpixel=False)
    assert found.tolist() == [[25, 27]]


def test_tracking_finds_a_shift_below_the_pixel():
    reference = blob(20, 30).values[:, :, 30, 20]
    found = track_points([blob(21.3, 29.6)], reference, to_points([[20, 30]]), 64, radius=6)
    assert (found - to_points([[21.3, 29.6]])).abs().max() < 0.15


def test_tracking_stays_in_the_image():
    reference = blob(1, 62).values[:, :, 62, 1]
    found = track_points([blob(-2, 66)], reference, to_points([[1, 62]]), 64, radius=6)
    assert found.tolist() == [[0, 63]]


def test_the_result_is_the_best_step_and_comes_last(exact):
    options = DragOptions(max_iterations=12, learning_rate=0.02, stop_distance=0.1)
    *steps, result = drag(exact, some_w(exact), to_points(HANDLES), to_points(TARGETS), options=options)
    assert [step.iteration for step in steps] == list(range(13))
    assert {step.stop_reason for step in steps} == {None}
    assert result.stop_reason == "max_iterations"
    best = min(steps, key=lambda step: (step.mean_distance_px, -step.iteration))
    assert (result.iteration, result.distance_px) == (best.iteration, best.distance_px)
    assert torch.equal(result.w, best.w)


def test_a_drag_that_has_arrived_stops_at_once(exact):
    options = DragOptions(stop_distance=20)
    first, result = drag(exact, some_w(exact), to_points(HANDLES), to_points(TARGETS), options=options)
    assert (first.iteration, result.stop_reason) == (0, "reached")


def test_a_drag_that_gains_nothing_stalls(exact):
    options = DragOptions(learning_rate=1e-9, max_iterations=100, subpixel=False)
    *steps, result = drag(exact, some_w(exact), to_points(HANDLES[:1]), to_points(TARGETS[:1]), options=options)
    assert (result.stop_reason, len(steps)) == ("stalled", 31)


def test_a_loss_that_is_no_number_ends_the_drag():
    broken = copy.deepcopy(tiny_generator())
    broken.synthesis.b8.conv1.bias.fill_(float("nan"))
    with pytest.raises(DragDiverged, match="iteration 0"):
        list(drag(broken, some_w(broken), to_points([[5, 5]]), to_points([[9, 9]])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"handles": to_points([[5, 32]])}, "0 to 31 pixels"),
        ({"targets": to_points([[5, 5], [6, 6]])}, "both be"),
        ({"w": torch.zeros(1, 3, 16)}, r"\[1, 8, 16\]"),
        ({"movable": torch.zeros(32, 32, dtype=torch.bool)}, "False everywhere"),
        ({"movable": torch.ones(16, 16, dtype=torch.bool)}, r"bool \[32, 32\]"),
        ({"options": DragOptions(trainable_layers=9)}, "1 to 8"),
        ({"options": DragOptions(feature_resolution=128)}, "feature_resolution"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    generator = tiny_generator()
    arguments = {"w": some_w(generator), "handles": to_points([[5, 5]]), "targets": to_points([[9, 9]])} | change
    with pytest.raises(InvalidEdit, match=message):
        next(drag(generator, **arguments))


def test_principal_directions_keep_w_where_it_varies_most(exact):
    w = some_w(exact)
    step = after(drag(exact, w, to_points(HANDLES), to_points(TARGETS), options=DragOptions(latent_space="pca:3")), 5)
    change = (step.w - w)[0, :6]
    torch.testing.assert_close(change, change[:1].expand(6, -1))
    directions = latent_statistics(exact).directions
    along = directions @ change[0]
    assert along[:3].abs().min() > 1e-4
    assert along[3:].abs().max() < 1e-12


def test_in_w_rows_keep_the_differences_they_began_with(exact):
    w = some_w(exact) + torch.arange(10)[None, :, None] / 10
    first = next(drag(exact, w, to_points(HANDLES), to_points(TARGETS), options=DragOptions(latent_space="w")))
    torch.testing.assert_close(first.w, w)


@pytest.mark.parametrize("latent_space", ["z", "pca:0", "pca:65", "pca:"])
def test_an_unknown_latent_space_is_refused(exact, latent_space):
    with pytest.raises(InvalidEdit, match=r"w, w\+ or pca:K with K from 1 to 64"):
        next(drag(exact, some_w(exact), to_points(HANDLES), to_points(TARGETS), options=DragOptions(latent_space=latent_space)))


@pytest.mark.parametrize("left_at", [0, 1, 7])
def test_a_drag_taken_up_elsewhere_ends_with_the_same_bytes(left_at):
    generator = reference_generator()
    arguments = (some_w(generator), to_points(HANDLES), to_points(TARGETS), None, DragOptions(max_iterations=12))
    whole = list(steps(DragRun(generator, *arguments)))
    left = DragRun(generator, *arguments)
    next(step for step in steps(left) if step.iteration == left_at)
    state = DragState.read(load(save(left.state().tensors())))
    again = DragRun(generator, *arguments)
    again.restore(state)
    rest = list(steps(again))
    assert [step.iteration for step in rest] == [*range(left_at, 13), whole[-1].iteration]
    for one, other in zip(rest, whole[left_at:], strict=True):
        assert (one.loss, one.stop_reason) == (other.loss, other.stop_reason)
        assert torch.equal(one.w, other.w)
        assert torch.equal(one.handles, other.handles)


def test_in_bfloat16_a_drag_goes_the_same_way():
    generator = reference_generator()
    w = some_w(generator)

    def moved(precision):
        options = DragOptions(learning_rate=0.01, precision=precision)
        return after(drag(generator, w, to_points(HANDLES), to_points(TARGETS), options=options), 10).w - w

    exact, low = moved("float32"), moved("bfloat16")
    assert low.dtype == torch.float32
    assert 0 < (low - exact).norm() < 0.2 * exact.norm()
