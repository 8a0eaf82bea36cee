"""The movable mask as pixels, drawn from shapes or read from a PNG. True where the picture may change."""

import io
import math
from collections.abc import Iterable, Sequence

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


def covers_any(shapes: Iterable[Shape], resolution: int) -> bool:
    """Return whether `draw_shapes` would set any pixel, without drawing; the first shape that does is the last one taken."""
    return any(covers_pixel(shape, resolution) for shape in shapes)


def covers_pixel(shape: Shape, resolution: int) -> bool:
    """Return whether a shape holds the center of a pixel of the image."""
    if shape.box is not None:
        left, top, right, bottom = shape.box
        return all(
            max(0, math.ceil(low)) <= min(resolution - 1, math.floor(high)) for low, high in ((left, right), (top, bottom))
        )
    if shape.circle is not None:
        center_x, center_y, radius = shape.circle
        x, y = (np.clip(np.array([np.floor(at), np.ceil(at)]), 0, resolution - 1) for at in (center_x, center_y))
        return bool(((x - center_x) ** 2).min() + ((y - center_y) ** 2).min() <= radius**2)
    return shape.polygon is not None and polygon_covers_pixel(np.array(shape.polygon), resolution)


def polygon_covers_pixel(polygon: np.ndarray, resolution: int) -> bool:
    """Return whether `draw_polygon` would set any pixel: whether a row changes an odd number of times before one of its pixels.

    Args:
        polygon: its corners (x, y) [N, 2].
    """
    x0, y0 = polygon.T
    x1, y1 = np.roll(polygon, -1, axis=0).T
    first, end = (np.ceil(limit(y0, y1)).clip(0, resolution).astype(np.int64) for limit in (np.minimum, np.maximum))
    counts = end - first  # rows that each edge crosses
    row = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - first, counts)
    x0, y0, width, height = (np.repeat(values, counts) for values in (x0, y0, x1 - x0, y1 - y0))
    x = np.ceil(x0 + (row - y0) * width / height).clip(0, resolution)
    changes = np.sort((row * resolution + x)[x < resolution].astype(np.int32), kind="stable")  # of integers twice as fast
    return len(changes) % 2 == 1 or not np.array_equal(changes[::2], changes[1::2])  # each even times: pairs of equals


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
        check_size(image.width, image.height, crop_transform)
        return crop_transform.cut_mask(np.asarray(image.convert("1")))


def check_size(width: int, height: int, crop_transform: CropTransform) -> None:
    """Raise InvalidJob when a mask is of another size than the picture."""
    if (width, height) != (crop_transform.width, crop_transform.height):
        wanted = f"{crop_transform.width} x {crop_transform.height} pixels like the picture"
        raise InvalidJob([Problem(field="movable", message=f"must be {wanted}, got {width} x {height}")])
