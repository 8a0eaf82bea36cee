"""Encoding frames as an animation: MP4 by PyAV, WebP and GIF by Pillow."""

from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image


def write_animation(frames: Iterable[np.ndarray], path: Path, *, frames_per_s: int = 20) -> None:
    """Write uint8 frames [H, W, 3] in the format of the path's suffix: .mp4, .webp or .gif.

    Raises:
        ValueError: there is no frame, or the suffix is another.
    """
    rest = iter(frames)
    first = next(rest, None)
    if first is None:
        raise ValueError("an animation needs at least one frame")
    if path.suffix == ".mp4":
        write_mp4(first, rest, path, frames_per_s)
    elif path.suffix in (".webp", ".gif"):
        write_pillow(first, rest, path, frames_per_s)
    else:
        raise ValueError(f"animation format must be mp4, webp or gif, got {path.suffix!r}")


def write_mp4(first: np.ndarray, rest: Iterator[np.ndarray], path: Path, frames_per_s: int) -> None:
    # faststart puts the index first, so that browsers play while they load; it needs a file that can be rewritten
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(frames_per_s), options={"crf": "20", "preset": "veryfast"})
        stream.height, stream.width = first.shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in chain([first], rest):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def write_pillow(first: np.ndarray, rest: Iterator[np.ndarray], path: Path, frames_per_s: int) -> None:
    options: dict[str, Any] = {"quality": 80, "method": 0} if path.suffix == ".webp" else {}
    Image.fromarray(first).save(
        path, save_all=True, append_images=map(Image.fromarray, rest), duration=1000 // frames_per_s, loop=0, **options
    )
