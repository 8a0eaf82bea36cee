import pytest
import torch

from engine.drag.feature_pass import FeaturePlan, cheapest_plan, compute_features, plan_features
from engine.drag.features import read_features
from engine.drag.options import DragOptions
from engine.networks.config import GeneratorConfig
from engine.networks.frozen_synthesis import frozen_synthesis
from tests.generators import reference_generator, some_w


@pytest.fixture(scope="module")
def exact():
    """The reference generator of 64 px in float64."""
    return reference_generator().double()


@pytest.mark.parametrize("reach", [0.7, 4.25])
@pytest.mark.parametrize("whole", [4, 8, 16, 32])
def test_windows_hold_what_the_whole_maps_hold_also_at_the_border(exact, whole, reach):
    points = torch.tensor([[0.0, 0.0], [63.0, 31.4], [20.6, 62.9], [33.0, 30.0]], dtype=torch.float64)
    synthesis = frozen_synthesis(exact, 64, rgb=False, precision="float32", windowed=True)
    around = (torch.rand(4, 50, 2, dtype=torch.float64) * 2 - 1) * (reach - 0.5) + points[:, None]
    windows = compute_features(synthesis, FeaturePlan(64, 2, whole, reach), some_w(exact), points, 64)
    everything = compute_features(synthesis, FeaturePlan(64, 2, 64, 64.0), some_w(exact), points, 64)
    assert windows.maps[0].values.shape[-1] < 64
    torch.testing.assert_close(
        read_features(windows.maps, around, 64), read_features(everything.maps, around, 64), atol=1e-11, rtol=0
    )


def test_few_points_are_seen_through_windows_and_many_on_the_whole_map():
    config = GeneratorConfig(resolution=512)
    few, many = (cheapest_plan(config, 128, 2, 5.0, points) for points in (2, 64))
    assert few.whole < 64
    assert many.whole == 128


def test_a_residual_generator_is_seen_whole():
    config = GeneratorConfig(resolution=512, architecture="resnet")
    assert cheapest_plan(config, 128, 2, 5.0, 1).whole == 128


def test_a_mask_needs_the_whole_feature_block(exact):
    assert plan_features(exact.config, DragOptions(feature_resolution=32), 1, masked=True).whole == 32
    assert plan_features(exact.config, DragOptions(feature_resolution=32), 1, masked=False).whole < 32
