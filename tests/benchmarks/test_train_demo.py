import math

import torch

from benchmarks.faces.factors import Z_DIM
from benchmarks.train_demo import LINEAR_OFFSET, centered, centered_w, new_generator, uncentered


def some_z():
    return torch.randn(8, Z_DIM, generator=torch.Generator().manual_seed(1))


def test_w_is_a_rotation_of_z_with_the_same_share_for_every_number():
    mapping = new_generator().mapping
    w = centered_w(mapping, some_z())
    torch.testing.assert_close(w.norm(dim=1), torch.full([8], math.sqrt(Z_DIM)), rtol=1e-3, atol=0)
    assert (mapping(some_z()) / math.sqrt(2) - LINEAR_OFFSET).std() > 0.9


def test_training_on_centered_latents_computes_the_same_pictures():
    generator = new_generator().requires_grad_(False)
    before = generator.images(generator.broadcast(generator.mapping(some_z())))
    mapping = centered(generator).mapping
    during = generator.images(generator.broadcast(centered_w(mapping, some_z())))
    after = uncentered(generator)
    torch.testing.assert_close(during, before, atol=2e-4, rtol=0)
    torch.testing.assert_close(after.images(after.broadcast(after.mapping(some_z()))), before, atol=2e-4, rtol=0)
