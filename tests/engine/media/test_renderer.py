import numpy as np
import torch

from engine.media.renderer import Painter
from engine.networks.stylegan2 import to_pixels
from tests.generators import reference_generator, some_w


def test_what_is_drawn_beside_a_drag_is_the_generators_picture():
    generator = reference_generator()
    ws = torch.cat([some_w(generator), some_w(generator).flip(1)])
    drawn = Painter(generator).draw(ws).pixels()
    assert drawn.shape == (2, 64, 64, 3)
    with torch.no_grad():
        np.testing.assert_array_equal(drawn, to_pixels(generator.images(ws)))
