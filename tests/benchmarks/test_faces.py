import torch

from benchmarks.faces.factors import RANGES, SHAPE, Z_DIM, factors_of
from benchmarks.faces.parts import LANDMARKS, PARTS, Anatomy
from benchmarks.faces.renderer import render


def some_z(count, seed=0):
    return torch.randn(count, Z_DIM, generator=torch.Generator().manual_seed(seed))


def test_factors_fill_their_ranges():
    values = factors_of(some_z(4000)).values
    low, high = (torch.tensor(side) for side in zip(*RANGES.values(), strict=True))
    position = (values - low) / (high - low)
    assert ((position >= 0) & (position <= 1)).all()
    assert (position.mean(dim=0) - 0.5).abs().max() < 0.03


def test_psi_0_is_the_mean_face():
    values = factors_of(some_z(2), psi=0.0).values
    low, high = (torch.tensor(side) for side in zip(*RANGES.values(), strict=True))
    torch.testing.assert_close(values, ((low + high) / 2).expand(2, -1))


def test_colors_come_from_the_second_z():
    z, other = some_z(3), some_z(3, seed=1)
    mixed = factors_of(z, other).values
    torch.testing.assert_close(mixed[:, : len(SHAPE)], factors_of(z).values[:, : len(SHAPE)])
    torch.testing.assert_close(mixed[:, len(SHAPE) :], factors_of(other).values[:, len(SHAPE) :])


def test_pupils_show_irises_and_are_dark():
    picture = render(factors_of(some_z(40)), 128, dense=True)
    for k, name in enumerate(LANDMARKS[:2]):
        x, y = picture.landmarks[:, k].round().long().unbind(1)
        shown = picture.part[torch.arange(40), y, x]
        assert (shown == PARTS.index(name.replace("pupil", "iris"))).float().mean() > 0.9
        assert picture.images[torch.arange(40), :, y, x].mean() < -0.7


def test_landmarks_do_not_depend_on_the_size_but_for_scale():
    factors = factors_of(some_z(4))
    small, large = render(factors, 64).landmarks, render(factors, 256).landmarks
    torch.testing.assert_close((small + 0.5) * 4, large + 0.5)


def test_a_face_turned_right_has_its_nose_on_the_right():
    values = factors_of(some_z(1), psi=0.0).values.repeat(2, 1)
    values[:, 0] = torch.tensor([-0.5, 0.5])
    left, right = Anatomy(type(factors_of(some_z(1)))(values)).landmarks()[:, LANDMARKS.index("nose_tip"), 0]
    assert right - left > 0.4


def test_coordinates_on_a_part_are_the_same_in_two_pictures_of_it():
    """The point of the lips at some coordinates keeps its color when only pose changes."""
    values = factors_of(some_z(1), psi=0.0).values.repeat(2, 1)
    values[1, 0] = 0.4
    picture = render(type(factors_of(some_z(1)))(values), 128, dense=True)
    nose = picture.part == PARTS.index("nose")
    assert nose[0].any()
    spread = [picture.coordinates[k][:, nose[k]].abs().amax(dim=1) for k in range(2)]
    torch.testing.assert_close(spread[0], spread[1], atol=0.04, rtol=0.2)
