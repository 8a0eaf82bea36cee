"""The picture that explains an edit: handles, targets, the way the handles went, and what was allowed to change."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Point = tuple[float, float]  # xy pixels of the image

HANDLE, TARGET, WAY = (230, 40, 40), (40, 110, 240), (255, 214, 0)
OUTLINE = (255, 255, 255)
MIN_SIZE = 512  # small images are enlarged, so that the marks leave something to see


def draw_overlay(
    pixels: np.ndarray, trajectory: Sequence[Sequence[Point]], targets: Sequence[Point], movable: np.ndarray | None = None
) -> np.ndarray:
    """Draw over the result.

    Args:
        pixels: uint8 [H, W, 3].
        trajectory: for each iteration the K handles; the first are where they started.
        targets: the K target points.
        movable: bool [H, W], True where the picture was allowed to change; the rest is darkened.

    Returns:
        uint8 [s H, s W, 3], s the smallest whole factor that makes the width at least 512 pixels.
    """
    factor = -(-MIN_SIZE // pixels.shape[1])
    canvas = enlarge(pixels, movable, factor)
    draw = ImageDraw.Draw(canvas)
    for k, target in enumerate(targets):
        way = [place(points[k], factor) for points in trajectory]
        draw.line([way[0], place(target, factor)], fill=OUTLINE, width=1)
        draw.line(way, fill=WAY, width=3)
        mark(draw, way[0], HANDLE, radius=6)
        mark(draw, place(target, factor), TARGET, radius=6)
        mark(draw, way[-1], WAY, radius=4)
    return np.asarray(canvas)


def enlarge(pixels: np.ndarray, movable: np.ndarray | None, factor: int) -> Image.Image:
    shown = pixels if movable is None else np.where(movable[:, :, None], pixels, pixels * 0.6).astype(np.uint8)
    height, width = shown.shape[:2]
    return Image.fromarray(shown).resize((width * factor, height * factor), Image.Resampling.BICUBIC)


def place(point: Point, factor: int) -> Point:
    """Where a pixel's center lies after enlarging."""
    return (point[0] + 0.5) * factor - 0.5, (point[1] + 0.5) * factor - 0.5


def mark(draw: ImageDraw.ImageDraw, point: Point, color: tuple[int, int, int], radius: int) -> None:
    x, y = point
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=OUTLINE)
