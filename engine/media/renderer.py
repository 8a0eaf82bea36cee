"""Pictures of a frozen generator, drawn beside the steps of a drag: on a GPU in a stream of their own (not measured on one)."""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from engine.networks.frozen_synthesis import frozen_synthesis
from engine.networks.stylegan2 import Generator, to_bytes


class Drawing:
    """Pictures on their way to the host."""

    def __init__(self, pixels: Tensor) -> None:
        """
        Args:
            pixels: uint8 [B, R, R, 3].
        """
        self.host, self.arrived = pixels, None
        if pixels.is_cuda:
            self.host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
            self.host.copy_(pixels.contiguous(), non_blocking=True)
            self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's stubs lack it
            self.arrived.record()

    def pixels(self) -> np.ndarray:
        """uint8 [B, R, R, 3], once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        found: np.ndarray = self.host.numpy()
        return found


@cache
def stream_of(device: torch.device) -> torch.cuda.Stream:
    """One for all: pictures are drawn one after another, in memory that the next ones use again."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class Painter:
    def __init__(self, generator: Generator) -> None:
        self.trunk = frozen_synthesis(generator, generator.config.resolution, rgb=True, precision="float32", windowed=False)
        self.stream = stream_of(generator.device) if generator.device.type == "cuda" else None

    @torch.no_grad()
    def draw(self, ws: Tensor) -> Drawing:
        """w+ [B, L, D] as they are once all work given to the GPU so far is done."""
        if self.stream is not None:
            self.stream.wait_stream(torch.cuda.current_stream(ws.device))
            ws.record_stream(self.stream)  # its memory is not used again before
        with torch.cuda.stream(self.stream):
            images = self.trunk.network.images(self.trunk.modulations(ws))
            return Drawing(to_bytes(images))
