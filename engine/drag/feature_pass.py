"""Only what the points need: fine blocks are computed in a window around each handle, the coarse ones whole.

Without a mask nothing else of the fine blocks matters. A window holds every cell that tracking and motion supervision can
read, and each layer's window what the next one's needs, so the features in it are those of the whole map. Windows may lie
partly outside the map, where the layers' zero padding is.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from engine.drag.features import FeatureMap
from engine.networks.config import GeneratorConfig
from engine.networks.stylegan2 import Modulation, Modulations, SynthesisBlock, SynthesisLayer, SynthesisNetwork, scale_channels

SMALLEST_WHOLE = 8  # blocks up to this size cost nothing that counts
SMALL_IS_SLOWER = 1.25  # per multiply-accumulate, on CPUs


@dataclass(frozen=True)
class Windows:
    """Squares of a map, one around each point."""

    corner: Tensor  # [K, 2], (x, y) of the first cell, integers
    side: int  # cells
    size: int  # cells of the whole map

    def inner(self) -> "Windows":
        """One cell less on each side."""
        return Windows(self.corner + 1, self.side - 2, self.size)

    def inputs(self) -> "Windows":
        """What of the next coarser block an up-sampling layer needs to fill these."""
        return Windows(self.corner // 2 - 1, self.side // 2 + 2, self.size // 2)

    @cached_property
    def places(self) -> Tensor:
        """[K, 2, side] cells along x and y."""
        return torch.arange(self.side, device=self.corner.device) + self.corner[:, :, None]

    @cached_property
    def inside(self) -> Tensor:
        """[K, 1, side, side] bool: which cells the map has."""
        x, y = ((self.places >= 0) & (self.places < self.size)).unbind(dim=1)
        return (y[:, :, None] & x[:, None, :])[:, None]

    def nearest(self) -> tuple[Tensor, Tensor]:
        """The cells of the map nearest to these: x [K, 1, side] and y [K, side, 1]."""
        x, y = self.places.clamp(0, self.size - 1).unbind(dim=1)
        return x[:, None, :], y[:, :, None]

    def cut(self, source: FeatureMap) -> Tensor:
        """What a map, or windows that hold these, has there: [K, C, side, side], zero outside the map."""
        sources, channels, side = source.values.shape[:3]
        which = torch.arange(sources, device=self.corner.device) if source.owner is None else source.owner
        x, y = self.nearest()
        first = which * side**2 - source.corner[:, 1] * side - source.corner[:, 0]  # where the map's cell (0, 0) would be
        cells = (y * side + x + first[:, None, None]).flatten()
        rows = source.values.permute(0, 2, 3, 1).reshape(-1, channels)  # no copy where channels lie last
        found = rows.index_select(0, cells).view(len(self.corner), self.side, self.side, channels)
        return found.permute(0, 3, 1, 2) * self.inside


@dataclass(frozen=True)
class Watch:
    """What a drag looks at: the feature block and coarser blocks, how far around each point."""

    until: int  # the feature block's resolution
    context: int  # coarser blocks watched beside it
    whole: int  # resolution of the last block that is computed whole
    reach: float  # farthest cell of the feature block that is read, from the point

    @property
    def resolutions(self) -> list[int]:
        """Of the blocks watched, coarse to fine."""
        return [self.until >> k for k in range(self.context, -1, -1) if self.until >> k >= 4]

    def windows(self, centers: Tensor) -> dict[int, Windows]:
        """Of the first layer of every block that is not whole, coarse to fine; centers [K, 2] are cells of the feature block.

        A first layer begins at even cells and reads one cell more on each side of half as many; a second layer gives back
        one cell less on each side than it reads.
        """
        needed = Windows((centers - self.reach).floor().long(), math.ceil(2 * self.reach) + 2, self.until)
        found: dict[int, Windows] = {}
        while needed.size > self.whole:
            corner = torch.div(needed.corner - 1, 2, rounding_mode="floor") * 2
            found[needed.size] = Windows(corner, even(needed.side + 3), needed.size)
            needed = found[needed.size].inputs()
        return dict(reversed(found.items()))


class Seen(NamedTuple):
    """What one pass of the synthesis network shows."""

    maps: list[FeatureMap]  # of the blocks watched, the feature block first
    blocks: dict[int, Tensor]  # the outputs [B, C, f, f] of the blocks computed whole, by resolution


def watch(
    synthesis: SynthesisNetwork, modulations: Modulations, what: Watch, points: Tensor, resolution: int,
    owner: Tensor | None = None,
) -> Seen:  # fmt: skip
    """The features around points.

    Args:
        modulations: of B latents.
        points: [K, 2] xy pixels.
        owner: [K], which latent each point belongs to; None: there is only one.
    """
    centers = (points + 0.5) * (what.until / resolution) - 0.5
    blocks = dict(synthesis.blocks(modulations, what.whole, "const"))
    maps = {size: around(FeatureMap.whole(blocks[size], owner), centers, what) for size in what.resolutions if size in blocks}
    last = FeatureMap.whole(blocks[what.whole], owner)
    modulations = modulations if owner is None else {name: one.select(owner) for name, one in modulations.items()}
    for size, windows in what.windows(centers).items():
        x = block_in(synthesis.block(size), f"b{size}", windows.inputs().cut(last), modulations, windows)
        last = maps[size] = FeatureMap(x, windows.inner().corner, size)
    return Seen([maps[size] for size in reversed(what.resolutions)], blocks)


def around(whole: FeatureMap, centers: Tensor, what: Watch) -> FeatureMap:
    """What can be read of whole maps; centers are cells of the feature block."""
    size = whole.size
    reach = what.reach * size / what.until
    if 2 * reach + 2 >= size:
        return whole
    corner = ((centers + 0.5) * (size / what.until) - 0.5 - reach).floor().long()
    return FeatureMap(Windows(corner, math.ceil(2 * reach) + 2, size).cut(whole), corner, size)


def block_in(block: SynthesisBlock, name: str, x: Tensor, modulations: Modulations, windows: Windows) -> Tensor:
    """A block's output [K, C, s - 2, s - 2] in windows that are its first layer's [K, s x s]; x has s / 2 + 2 cells a side."""
    x = layer_in(block.conv0, x, modulations[f"{name}.conv0"], windows)
    return layer_in(block.conv1, x, modulations[f"{name}.conv1"], windows.inner())


def layer_in(layer: SynthesisLayer, x: Tensor, modulation: Modulation, windows: Windows) -> Tensor:
    """A layer's output in the windows, zero outside the map, of an input that holds all it reads."""
    x = layer.convolve(scale_channels(x, modulation.scale), padding=0)
    across, down = windows.nearest()
    return layer.activate(x, modulation, layer.noise_const[down, across]) * windows.inside


def choose_watch(
    config: GeneratorConfig, until: int, context: int, reach: float, points: int, copies: int = 1, *, least: int = SMALLEST_WHOLE
) -> Watch:
    """The cheapest way to see this far around so many points: which blocks are computed whole.

    Args:
        until: the feature block's resolution.
        reach: cells of the feature block.
        copies: of w, each with whole blocks of its own.
        least: resolution up to which blocks are wanted whole.
    """
    ways = [Watch(until, context, whole, reach) for whole in config.block_resolutions if least <= whole < until]
    windowed = ways if config.architecture != "resnet" else []  # its blocks have a branch beside their layers
    return min([Watch(until, context, until, reach), *windowed], key=lambda way: cost(config, way, points, copies))


def cost(config: GeneratorConfig, way: Watch, points: int, copies: int) -> float:
    """Multiply-accumulates of the convolutions of one pass, those in windows weighed by what they take longer."""
    total, windows = 0.0, way.windows(torch.zeros(1, 2))
    for size in (size for size in config.block_resolutions if 4 < size <= way.until):
        cells = copies * size**2 if size <= way.whole else SMALL_IS_SLOWER * points * windows[size].side ** 2
        channels = config.channels(size)
        total += cells * channels * 9 * (config.channels(size // 2) / 4 + channels)
    return total


def even(number: int) -> int:
    """The same or one more."""
    return number + number % 2
