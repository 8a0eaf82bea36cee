import torch
import torch.nn.functional as F

from engine.features import disc, sample


def test_samples_are_those_of_the_upsampled_map():
    torch.manual_seed(0)
    features = torch.randn(1, 5, 16, 16, dtype=torch.float64)
    image_size = F.interpolate(features, size=(64, 64), mode="bilinear", align_corners=False)
    points = torch.rand(200, 2, dtype=torch.float64) * 63
    grid = (points / 63 * 2 - 1)[None, None]
    expected = F.grid_sample(image_size, grid, align_corners=True)[0, :, 0].t()
    torch.testing.assert_close(sample([features], points, 64), expected, atol=1e-12, rtol=0)


def test_beyond_the_border_the_border_counts():
    features = torch.arange(16.0).reshape(1, 1, 4, 4)
    outside, corner = sample([features], torch.tensor([[-5.0, -5.0], [0.0, 0.0]]), 8)
    assert outside == corner == 0


def test_the_disc_of_radius_three_has_25_offsets():
    assert len(disc(3, 1.0, torch.zeros(1))) == 25
    assert disc(3, 0.25, torch.zeros(1)).norm(dim=1).max() < 0.75
