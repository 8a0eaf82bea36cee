import torch
import torch.nn.functional as F

from engine.drag.features import FeatureMap, disc_offsets, read_features, read_grid


def test_samples_are_those_of_the_upsampled_map():
    torch.manual_seed(0)
    features = torch.randn(1, 5, 16, 16, dtype=torch.float64)
    image_size = F.interpolate(features, size=(64, 64), mode="bilinear", align_corners=False)
    points = torch.rand(200, 2, dtype=torch.float64) * 63
    grid = (points / 63 * 2 - 1)[None, None]
    expected = F.grid_sample(image_size, grid, align_corners=True)[0, :, 0].t()
    found = read_features([FeatureMap.whole(features)], points[None], 64)[0]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


def test_a_window_reads_as_the_whole_map_does():
    features = torch.randn(1, 5, 16, 16, dtype=torch.float64)
    window = FeatureMap(features[:, :, 4:12, 2:10], torch.tensor([[2, 4]]), 16)  # x, y
    points = torch.tensor([[[14.2, 20.9], [30.0, 40.5]]], dtype=torch.float64)
    torch.testing.assert_close(
        read_features([window], points, 64), read_features([FeatureMap.whole(features)], points, 64), atol=1e-12, rtol=0
    )


def test_a_grid_reads_every_crossing_of_its_lines():
    whole = FeatureMap.whole(torch.randn(1, 5, 16, 16, dtype=torch.float64))
    ticks = torch.tensor([[[3.0, 7.0], [4.0, 8.0]]], dtype=torch.float64)
    crossings = torch.tensor([[[3.0, 7.0], [4.0, 7.0], [3.0, 8.0], [4.0, 8.0]]], dtype=torch.float64)
    found = read_grid([whole], ticks, 64).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, read_features([whole], crossings, 64), atol=1e-12, rtol=0)


def test_beyond_the_border_the_border_counts():
    features = torch.arange(16.0).reshape(1, 1, 4, 4)
    outside, corner = read_features([FeatureMap.whole(features)], torch.tensor([[[-5.0, -5.0], [0.0, 0.0]]]), 8)[0]
    assert outside == corner == 0


def test_the_disc_of_radius_three_has_25_offsets():
    assert len(disc_offsets(3, 1.0, torch.zeros(1))) == 25
    assert disc_offsets(3, 0.25, torch.zeros(1)).norm(dim=1).max() < 0.75
