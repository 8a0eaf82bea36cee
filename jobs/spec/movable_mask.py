"""The movable mask as pixels: shapes drawn, PNGs read. True where the picture may change."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jobs.errors import InvalidJob, Problem
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import Movable, Shape


def draw_shapes(shapes: Sequence[Shape], resolution: int) -> np.ndarray:
    """The union of the shapes: bool [R, R]. A pixel belongs to a shape when its center lies in it; edges of boxes do."""
    mask = np.zeros((resolution, resolution), dtype=bool)
    y, x = np.mgrid[:resolution, :resolution]
    for shape in shapes:
        if shape.box is not None:
            left, top, right, bottom = shape.box
            mask |= (x >= left) & (x <= right) & (y >= top) & (y <= bottom)
        elif shape.circle is not None:
            center_x, center_y, radius = shape.circle
            mask |= (x - center_x) ** 2 + (y - center_y) ** 2 <= radius**2
        elif shape.polygon is not None:
            mask |= draw_polygon(shape.polygon, resolution)
    return mask


def draw_polygon(polygon: Sequence[tuple[float, float]], resolution: int) -> np.ndarray:
    """Pixels whose center is inside by the even-odd rule; centers on a right or lower edge are not."""
    flips = np.zeros((resolution, resolution + 1), dtype=np.int64)  # where a row changes between outside and inside
    rows = np.arange(resolution)
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        crossed = rows[(rows >= min(y0, y1)) & (rows < max(y0, y1))]
        if len(crossed):
            x = x0 + (crossed - y0) * (x1 - x0) / (y1 - y0)
            np.add.at(flips, (crossed, np.ceil(x).clip(0, resolution).astype(np.int64)), 1)
    return np.asarray(flips.cumsum(axis=1)[:, :resolution] % 2 == 1)


def movable_mask(movable: Movable, framing: CropTransform, png: bytes = b"") -> np.ndarray:
    """What may change of the model's image, bool [R, R]; png is the mask that was uploaded. Raises InvalidJob."""
    if movable.shapes is not None:
        return draw_shapes([framing.shape(shape) for shape in movable.shapes], framing.resolution)
    return uploaded_mask(png, framing)


def uploaded_mask(png: bytes, framing: CropTransform) -> np.ndarray:
    """What may change of the model's image, bool [R, R], by a mask as uploads keep it: one bit a pixel. Raises InvalidJob."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        if image.size != (framing.width, framing.height):
            wanted = f"{framing.width} x {framing.height} pixels like the picture"
            raise invalid(f"must be {wanted}, got {image.width} x {image.height}")
        return framing.mask(np.asarray(image.convert("1")))


def invalid(message: str) -> InvalidJob:
    return InvalidJob([Problem(field="movable", message=message)])
