"""Images of a frozen generator, rendered beside the steps of a drag.

On a GPU they have a CUDA stream of their own (not measured on a GPU).
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from engine.networks.frozen_synthesis import frozen_synthesis
from engine.networks.stylegan2 import Generator, to_uint8


class RenderedImages:
    """Images that a GPU may still be rendering and copying to the host."""

    def __init__(self, pixels: Tensor) -> None:
        """Begin the copy to the host.

        Args:
            pixels: uint8 [B, R, R, 3].
        """
        self.host, self.copied = pixels, None
        if pixels.is_cuda:
            self.host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            self.host.copy_(pixels.contiguous(), non_blocking=True)
            self.copied = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's stubs lack it
            self.copied.record()

    def pixels(self) -> np.ndarray:
        """Return uint8 pixels [B, R, R, 3], waiting until they have arrived."""
        if self.copied is not None:
            self.copied.synchronize()
        pixels: np.ndarray = self.host.numpy()
        return pixels


@cache
def render_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the device's one stream for images, which are rendered one after another in memory that the next ones reuse."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's stubs lack it


class Renderer:
    """Renders the images of one frozen generator."""

    def __init__(self, generator: Generator) -> None:
        self.synthesis = frozen_synthesis(generator, generator.config.resolution, rgb=True, precision="float32", windowed=False)
        self.stream = render_stream(generator.device) if generator.device.type == "cuda" else None

    @torch.no_grad()
    def render(self, ws: Tensor) -> RenderedImages:
        """Render w+ [B, L, D] as they will be when all work submitted to the GPU so far is done."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(ws.device))
            ws.record_stream(self.stream)  # the memory of ws is not reused before the stream is done with it
        with torch.cuda.stream(self.stream):
            images = self.synthesis.network.images(self.synthesis.modulations(ws))  # [B, 3, R, R]
            return RenderedImages(to_uint8(images))
