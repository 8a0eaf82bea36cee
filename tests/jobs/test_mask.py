import numpy as np

from jobs.mask import draw_shapes, read_png, write_png
from jobs.spec import Shape


def test_shapes_are_united():
    mask = draw_shapes([Shape(box=(0, 0, 2, 1)), Shape(circle=(10, 10, 1))], 16)
    assert {(int(x), int(y)) for y, x in np.argwhere(mask)} == {
        (0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (10, 10), (9, 10), (11, 10), (10, 9), (10, 11),
    }  # fmt: skip


def test_a_polygon_covers_its_inside():
    mask = draw_shapes([Shape(polygon=[(2, 2), (12, 2), (12, 12), (2, 12)])], 16)
    assert mask[2:13, 2:13].all()
    assert mask.sum() == 11 * 11


def test_a_mask_survives_its_png():
    mask = np.random.RandomState(0).rand(32, 32) > 0.5
    assert (read_png(write_png(mask), 32) == mask).all()
    assert write_png(mask) == write_png(mask)
