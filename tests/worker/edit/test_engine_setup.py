import pytest
import torch

from engine.drag.options import DragOptions
from engine.errors import CheckpointDamaged, EngineError
from jobs.models.manifest import ModelManifest
from jobs.spec.validation import check_submission
from tests.manifests import TINY, write_tiny_checkpoints
from worker.edit.engine_setup import drag_options, open_generator
from worker.errors import CODES

MANIFEST = ModelManifest(None, {"tiny": TINY})


def resolved(points=1, movable=None, **drag):
    pairs = [{"handle": [k, 1], "target": [k, 9]} for k in range(points)]
    document = {"model": "tiny", "source": {"seed": 1}, "points": pairs, "movable": movable, "drag": drag}
    return check_submission(document, MANIFEST).spec


def test_the_default_preset_is_the_reference_with_five_changes():
    expected = DragOptions(
        feature_resolution=16, motion_radius=12, anchor_distance=24, overstep=False, context_blocks=2, mask_metric="l2"
    )
    assert drag_options(resolved()) == expected


def test_a_point_that_nothing_holds_is_pulled_by_its_start_from_further_away_and_by_a_larger_disc():
    movable = {"shapes": [{"circle": [16, 16, 8]}]}
    options = [drag_options(spec) for spec in (resolved(), resolved(movable=movable), resolved(points=2))]
    assert [given.anchor_distance for given in options] == [24, 12, 12]
    assert [given.motion_radius for given in options] == [12, 3, 3]


def test_with_many_points_the_default_preset_drags_in_w_without_an_anchor():
    few, many = drag_options(resolved(points=15)), drag_options(resolved(points=16))
    assert (few.latent_space, few.anchor_distance) == ("w+", 12)
    assert (many.latent_space, many.anchor_distance) == ("w", 0)


def test_the_paper_preset_stays_on_whole_pixels():
    options = drag_options(resolved(preset="paper"))
    assert options == DragOptions(feature_resolution=16, max_iterations=300, subpixel=False, tracking_metric="l1")


def test_the_fast_preset_goes_as_far_as_the_points_should_where_nothing_else_pulls():
    movable = {"shapes": [{"circle": [16, 16, 8]}]}
    given = ({}, {"movable": movable}, {"latent_weight": 0.1})
    options = [drag_options(resolved(preset="fast", points=2, **one)) for one in given]
    assert [one.solver for one in options] == ["gauss-newton", "adam", "adam"]
    assert [one.precision for one in options] == ["bfloat16"] * 3
    assert [one.motion_radius for one in options] == [12, 3, 12]


def test_what_the_client_chose_reaches_the_engine():
    options = drag_options(resolved(mask_weight=5, latent_space="w", trainable_layers=4))
    assert (options.mask_weight, options.latent_space, options.trainable_layers) == (5, "w", 4)


def leaves(error):
    """The classes below an error that are raised."""
    below = error.__subclasses__()
    return [leaf for one in below for leaf in leaves(one)] if below else [error]


@pytest.mark.parametrize("error", leaves(EngineError))
def test_every_engine_error_has_a_code(error):
    assert error in CODES


def test_a_file_of_another_shape_than_the_manifest_says_is_damaged(tmp_path):
    manifest = ModelManifest.load(write_tiny_checkpoints(tmp_path))
    model = manifest.get("tiny")
    assert open_generator(manifest, model, torch.device("cpu")).config.resolution == 32
    with pytest.raises(CheckpointDamaged, match="another shape than the manifest says"):
        open_generator(manifest, model.model_copy(update={"resolution": 64}), torch.device("cpu"))
