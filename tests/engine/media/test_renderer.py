import numpy as np
import torch

from engine.media.renderer import Renderer
from engine.networks.stylegan2 import to_pixels
from tests.generators import reference_generator, some_w


def test_images_rendered_beside_a_drag_are_the_generators():
    generator = reference_generator()
    ws = torch.cat([some_w(generator), some_w(generator).flip(1)])
    pixels = Renderer(generator).render(ws).pixels()
    assert pixels.shape == (2, 64, 64, 3)
    with torch.no_grad():
        np.testing.assert_array_equal(pixels, to_pixels(generator.images(ws)))
