import io
import math

import numpy as np
import pytest
from PIL import Image

from jobs.errors import InvalidJob
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import Box, FivePoints, Landmarks
from jobs.spec.mask_cut import outline_verdict, sees_any
from jobs.storage.mask_outline import CELLS, MaskOutline


def transforms(random, width, height):
    """Crops of every kind that a photo of this size allows, of models of several sizes."""
    for resolution in (16, 64, 256):
        side = int(random.randint(16, min(width, height) + 1))
        left, top = random.randint(0, width - side + 1), random.randint(0, height - side + 1)
        tilt, reach = random.uniform(-math.pi, math.pi), min(width, height) / 8
        around = [(-1, -1), (1, -1), (0, 0), (-1, 1), (1, 1)]
        turn = np.array([[math.cos(tilt), -math.sin(tilt)], [math.sin(tilt), math.cos(tilt)]])
        places = [tuple((turn @ np.array(at) * reach + [width / 2, height / 2]).tolist()) for at in around]
        face = FivePoints(**dict(zip(("left_eye", "right_eye", "nose", "mouth_left", "mouth_right"), places, strict=True)))
        for crop in (None, Box(box=(left, top, left + side, top + side)), Landmarks(landmarks=face)):
            yield CropTransform.of_photo(crop, width, height, resolution)


def masks(random, width, height):
    """Blobs, lines, points and noise."""
    y, x = np.mgrid[:height, :width]
    a, b, radius = random.randint(0, width), random.randint(0, height), random.choice([0.5, 1, 3, 9, 40])
    yield (x - a) ** 2 + (y - b) ** 2 <= radius**2
    yield np.broadcast_to((x - a) % random.randint(2, 40) == 0, (height, width))
    yield random.rand(height, width) < random.choice([0.001, 0.45, 0.55, 0.999])
    yield np.zeros((height, width), dtype=bool)


def test_what_the_outline_decides_is_what_the_worker_finds():
    random, decided = np.random.RandomState(0), []
    for _ in range(6):
        width, height = (int(side) for side in random.randint(40, 700, 2))
        for transform in transforms(random, width, height):
            for mask in masks(random, width, height):
                verdict = outline_verdict(MaskOutline.of(mask), transform)
                decided.append(verdict is not None)
                assert verdict in (None, bool(transform.cut_mask(mask).any())), transform
    assert sum(decided) > len(decided) / 3


def test_a_mask_painted_with_a_brush_is_decided_by_its_outline():
    y, x = np.mgrid[:900, :1200]
    brush = (x - 600) ** 2 + (y - 450) ** 2 <= 30**2
    assert outline_verdict(MaskOutline.of(brush), CropTransform.of_photo(None, 1200, 900, 1024)) is True
    assert outline_verdict(MaskOutline.of(brush), CropTransform.of_photo(Box(box=(0, 0, 300, 300)), 1200, 900, 1024)) is False


def test_a_mask_of_the_models_own_image_is_decided_by_one_pixel():
    mask = np.zeros((1024, 1024), dtype=bool)
    assert outline_verdict(MaskOutline.of(mask), CropTransform.whole(1024)) is False
    mask[1023, 1023] = True
    assert outline_verdict(MaskOutline.of(mask), CropTransform.whole(1024)) is True


@pytest.mark.parametrize("width", [1, 3])
def test_where_the_outline_cannot_tell_a_child_cuts_the_mask(width):
    mask = np.zeros((400, 400), dtype=bool)
    mask[:, 200 : 200 + width] = True  # through a crop that shrinks to a quarter
    transform = CropTransform.of_photo(None, 400, 400, 100)
    assert outline_verdict(MaskOutline.of(mask), transform) is None
    out = io.BytesIO()
    Image.fromarray(mask).save(out, format="PNG")
    assert sees_any([out.getvalue()], transform, "") is bool(transform.cut_mask(mask).any()) is (width == 3)


def test_a_mask_that_nothing_can_read_is_refused():
    with pytest.raises(InvalidJob, match="movable: is not a picture"):
        sees_any([b"nothing"], CropTransform.whole(32), "")


@pytest.mark.parametrize("shape", [(1, 1), (256, 256), (257, 30), (31, 1000)])
def test_an_outline_is_small_and_survives_its_bytes(shape):
    mask = np.random.RandomState(0).rand(*shape) < 0.5
    outline = MaskOutline.of(mask)
    kept = MaskOutline.from_bytes(outline.to_bytes())
    assert (kept.cell, kept.some.tolist(), kept.every.tolist()) == (outline.cell, outline.some.tolist(), outline.every.tolist())
    assert max(outline.some.shape) <= CELLS
    assert len(outline.to_bytes()) <= 2 * CELLS * CELLS // 8 + 12
