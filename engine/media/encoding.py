"""Pixels as the bytes of a file: PNG and WebP pictures, and animations."""

import io
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from engine.media.animation import write_animation


def encode_image(pixels: np.ndarray, suffix: str) -> bytes:
    """Return uint8 pixels [H, W, 3] as a file.

    Args:
        suffix: `.webp`, with loss; any other is PNG, without.
    """
    out = io.BytesIO()
    if suffix == ".webp":
        Image.fromarray(pixels).save(out, format="WEBP", quality=90, method=2)
    else:
        Image.fromarray(pixels).save(out, format="PNG")
    return out.getvalue()


def encode_animation(frames: Iterable[np.ndarray], suffix: str) -> bytes:
    """Return uint8 frames [H, W, 3] as an animation: `.mp4`, `.webp` or `.gif`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"animation{suffix}"
        write_animation(frames, path)
        return path.read_bytes()
