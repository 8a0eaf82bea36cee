"""The image that explains an edit: handles, targets, the paths of the handles, and the mask."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]  # xy pixels of the image

HANDLE, TARGET, PATH = (230, 40, 40), (40, 110, 240), (255, 214, 0)
OUTLINE = (255, 255, 255)
MIN_SIZE = 512  # pixels; smaller images are enlarged, so that the marks do not cover them


def draw_overlay(
    pixels: np.ndarray, trajectory: Sequence[Sequence[Point]], targets: Sequence[Point], movable: np.ndarray | None = None
) -> np.ndarray:
    """Draw paths, handles and targets over the result of an edit.

    Args:
        pixels: uint8 [H, W, 3].
        trajectory: the K handles of each iteration, in order; the first are the handle points of the edit.
        targets: the K target points.
        movable: bool [H, W], True where the image was allowed to change; the rest is darkened.

    Returns:
        uint8 [s H, s W, 3], s the smallest whole factor that makes the width at least 512 pixels.
    """
    factor = -(-MIN_SIZE // pixels.shape[1])
    canvas = enlarge(darken(pixels, movable), factor)
    draw = ImageDraw.Draw(canvas)
    for k, target in enumerate(targets):
        path = [scale_point(points[k], factor) for points in trajectory]
        end = scale_point(target, factor)
        draw.line([path[0], end], fill=OUTLINE, width=1)
        draw.line(path, fill=PATH, width=3)
        draw_mark(draw, path[0], HANDLE, radius=6)
        draw_mark(draw, end, TARGET, radius=6)
        draw_mark(draw, path[-1], PATH, radius=4)
    return np.asarray(canvas)


def darken(pixels: np.ndarray, movable: np.ndarray | None) -> np.ndarray:
    """Darken uint8 pixels [H, W, 3] where movable [H, W] is False; None darkens nothing."""
    return pixels if movable is None else np.where(movable[:, :, None], pixels, pixels * 0.6).astype(np.uint8)


def enlarge(pixels: np.ndarray, factor: int) -> Image.Image:
    """Enlarge uint8 pixels [H, W, 3] by a whole factor."""
    height, width = pixels.shape[:2]
    return Image.fromarray(pixels).resize((width * factor, height * factor), Image.Resampling.BICUBIC)


def scale_point(point: Point, factor: int) -> Point:
    """Return where a point lies in the enlarged image; pixel centers are at integers in both."""
    return (point[0] + 0.5) * factor - 0.5, (point[1] + 0.5) * factor - 0.5


def draw_mark(draw: ImageDraw.ImageDraw, point: Point, color: tuple[int, int, int], radius: int) -> None:
    """Draw a disc with an outline."""
    x, y = point
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=OUTLINE)
