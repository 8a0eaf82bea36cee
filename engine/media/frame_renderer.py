"""The frames of one drag: latents kept small, rendered in groups of a fixed size, kept in a file until the animation."""

import tempfile
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.media.renderer import RenderedImages, Renderer
from engine.networks.stylegan2 import Generator


class FrameRenderer:
    """Renders frames that differ from the start in the trainable rows of w+ alone."""

    def __init__(self, generator: Generator, start: Tensor, trainable_rows: int | None, group_size: int) -> None:
        """Prepare the generator.

        Args:
            start: w+ [1, L, D].
            trainable_rows: so many rows of w+, from the first on, may change; None: all.
            group_size: pictures in one batch; the bytes of a picture may depend on it.
        """
        self.renderer = Renderer(generator)
        self.start = start
        self.trainable_rows = trainable_rows
        self.group_size = group_size

    def take_rows(self, w: Tensor) -> Tensor:
        """Return what a frame must keep of w+ [1, L, D]: its trainable rows [1, rows, D]."""
        return w[:, : self.trainable_rows]

    def split_rows(self, rows: Tensor, count: int) -> list[Tensor]:
        """Return the rows [1, rows, D] of each of so many frames that were joined."""
        return [rows[k : k + 1].to(self.start) for k in range(count)]

    def render(self, w: Tensor) -> RenderedImages:
        """Start rendering w+ [1, L, D]."""
        return self.renderer.render(w)

    def render_group(self, rows: Sequence[Tensor]) -> RenderedImages:
        """Start rendering at most `group_size` frames as one batch, filled up with the last one."""
        latents = [torch.cat([row, self.start[:, row.shape[1] :]], dim=1) for row in rows]
        padded = latents + [latents[-1]] * (self.group_size - len(latents))
        return self.renderer.render(torch.cat(padded))


def join_rows(rows: Sequence[Tensor]) -> Tensor | None:
    """Return the rows [1, rows, D] of N frames as one tensor [N, rows, D]; None where there are no frames."""
    return torch.cat(list(rows)) if rows else None


class FrameFile:
    """Rendered frames in a temporary file: an animation needs them all, memory should not."""

    def __init__(self, resolution: int) -> None:
        self.shape = (resolution, resolution, 3)
        self.file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by close()
        self.coming: list[tuple[RenderedImages, int]] = []  # not written yet: they may still be on their way to the host

    def append(self, rendered: RenderedImages, count: int) -> None:
        """Keep the first `count` rendered pictures."""
        self.write()
        self.coming.append((rendered, count))

    def write(self) -> None:
        """Write what has been appended so far."""
        for rendered, count in self.coming:
            self.file.write(np.ascontiguousarray(rendered.pixels()[:count]).tobytes())
        self.coming.clear()

    def read_with(self, last: np.ndarray) -> Iterator[np.ndarray]:
        """Yield all frames, uint8 [R, R, 3], from the first on, and then one more."""
        self.write()
        self.file.seek(0)
        size = int(np.prod(self.shape))
        while data := self.file.read(size):
            yield np.frombuffer(data, dtype=np.uint8).reshape(self.shape)
        yield last

    def close(self) -> None:
        """Delete the file."""
        self.file.close()
