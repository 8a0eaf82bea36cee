import pytest
import torch

from engine.drag.mask_term import DEAD_ZONE, USUAL_CHANGE, AbsoluteChange, SquaredChange


@pytest.fixture
def change():
    """[2, 3, 4, 4], some of it smaller than rounding."""
    torch.manual_seed(0)
    change = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    change[0, 0] *= DEAD_ZONE / 10
    return change.requires_grad_()


@pytest.fixture
def share():
    torch.manual_seed(1)
    return torch.rand(1, 1, 4, 4, dtype=torch.float64)


def test_the_penalties_are_what_they_say(change, share):
    beyond = (change.abs() - DEAD_ZONE).clamp(min=0) * share
    torch.testing.assert_close(AbsoluteChange.apply(change, share), beyond.mean())
    torch.testing.assert_close(SquaredChange.apply(change, share), (change.square() / USUAL_CHANGE * share).mean())


@pytest.mark.parametrize("penalty", [AbsoluteChange, SquaredChange])
def test_their_gradients_are_those_of_what_they_compute(penalty, change, share):
    assert torch.autograd.gradcheck(lambda change: penalty.apply(change, share), change, eps=1e-7, atol=1e-6)
