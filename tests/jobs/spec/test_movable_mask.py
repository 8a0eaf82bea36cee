import io

import numpy as np
import pytest
from PIL import Image

from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import Shape
from jobs.spec.movable_mask import draw_shapes, uploaded_mask
from jobs.storage.picture_files import Refused
from tests.decoding import read


def test_shapes_are_united():
    mask = draw_shapes([Shape(box=(0, 0, 2, 1)), Shape(circle=(10, 10, 1))], 16)
    assert {(int(x), int(y)) for y, x in np.argwhere(mask)} == {
        (0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (10, 10), (9, 10), (11, 10), (10, 9), (10, 11),
    }  # fmt: skip


def test_a_polygon_covers_its_inside():
    mask = draw_shapes([Shape(polygon=[(2, 2), (12, 2), (12, 12), (2, 12)])], 16)
    assert mask[2:12, 2:12].all()
    assert mask.sum() == 10 * 10


def test_a_polygon_holds_the_pixels_whose_center_it_holds():
    mask = draw_shapes([Shape(polygon=[(2.6, 2.6), (11.4, 2.6), (11.4, 11.4), (2.6, 11.4)])], 16)
    assert (mask.sum(), mask[3:12, 3:12].all()) == (81, True)


def test_polygons_that_share_an_edge_share_no_pixel():
    left, right = [(0, 0), (7, 0), (3, 15), (0, 15)], [(7, 0), (15, 0), (15, 15), (3, 15)]
    masks = [draw_shapes([Shape(polygon=polygon)], 16) for polygon in (left, right)]
    assert not (masks[0] & masks[1]).any()
    assert (masks[0] | masks[1])[:15, :15].all()


def test_a_polygon_that_crosses_itself_is_even_odd():
    star = [(16, 1), (25, 30), (1, 12), (31, 12), (7, 30)]
    assert not draw_shapes([Shape(polygon=star)], 32)[17, 16]


def encoded(image):
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def test_a_mask_survives_its_png():
    mask = np.random.RandomState(0).rand(32, 32) > 0.5
    kept = read(encoded(Image.fromarray(mask)), "mask")
    assert (kept.kind, kept.width, kept.height) == ("mask", 32, 32)
    assert (uploaded_mask(kept.data, CropTransform.whole(32)) == mask).all()


@pytest.mark.parametrize("mode", ["1", "L", "I;16", "RGB", "RGBA", "P"])
def test_any_channel_but_alpha_sets_the_mask(mode):
    values = np.zeros((8, 8), dtype=np.uint8)
    values[2:5, 3:6] = 1
    image = Image.fromarray(values.astype(np.uint16)) if mode == "I;16" else Image.fromarray(values * 255).convert(mode)
    if mode == "RGBA":
        image.putalpha(0)
    assert (uploaded_mask(read(encoded(image), "mask").data, CropTransform.whole(8)) == (values > 0)).all()


def test_what_is_no_png_is_no_mask():
    with pytest.raises(Refused, match="known formats: PNG"):
        read(b"no picture", "mask")
