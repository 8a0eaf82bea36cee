"""The movable mask as pixels, drawn from shapes or read from a PNG. True where the picture may change."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jobs.errors import InvalidJob, Problem
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import Movable, Shape


def draw_shapes(shapes: Sequence[Shape], resolution: int) -> np.ndarray:
    """Draw the union of the shapes as bool [R, R]. A pixel belongs to a shape that holds its center; edges of boxes count."""
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
    """Draw the pixels whose center is inside by the even-odd rule, bool [R, R]; centers on a right or lower edge are outside."""
    flips = np.zeros((resolution, resolution + 1), dtype=np.int64)  # where a row changes between outside and inside
    rows = np.arange(resolution)
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        crossed = rows[(rows >= min(y0, y1)) & (rows < max(y0, y1))]
        if len(crossed):
            x = x0 + (crossed - y0) * (x1 - x0) / (y1 - y0)
            np.add.at(flips, (crossed, np.ceil(x).clip(0, resolution).astype(np.int64)), 1)
    return np.asarray(flips.cumsum(axis=1)[:, :resolution] % 2 == 1)


def movable_mask(movable: Movable, crop_transform: CropTransform, png: bytes = b"") -> np.ndarray:
    """Return what may change of the model's image, bool [R, R]. Raises InvalidJob.

    Args:
        png: the uploaded mask, where `movable` names one.
    """
    if movable.shapes is not None:
        return draw_shapes([crop_transform.to_model_shape(shape) for shape in movable.shapes], crop_transform.resolution)
    return uploaded_mask(png, crop_transform)


def uploaded_mask(png: bytes, crop_transform: CropTransform) -> np.ndarray:
    """Return what may change of the model's image, bool [R, R], from an uploaded mask (one bit a pixel). Raises InvalidJob."""
    with Image.open(io.BytesIO(png), formats=("PNG",)) as image:
        if image.size != (crop_transform.width, crop_transform.height):
            wanted = f"{crop_transform.width} x {crop_transform.height} pixels like the picture"
            raise invalid(f"must be {wanted}, got {image.width} x {image.height}")
        return crop_transform.cut_mask(np.asarray(image.convert("1")))


def invalid(message: str) -> InvalidJob:
    return InvalidJob([Problem(field="movable", message=message)])
