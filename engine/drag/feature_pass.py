"""Compute the features around the points, and no more: fine blocks in a window around each handle, coarse blocks whole.

Without a mask nothing else of the fine blocks matters. A window holds every cell that tracking and motion supervision can read,
and each layer's window holds what the next layer needs, so the features in a window are those of the whole map. Windows may lie
partly outside the map, where the layers' zero padding is.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from engine.defaults import EARLY_RESOLUTION, default_feature_resolution
from engine.drag.features import FeatureMap
from engine.drag.options import REFERENCE_RESOLUTION, DragOptions
from engine.drag.solvers import SOLVERS
from engine.drag.tracking import tracking_pixels
from engine.networks.config import GeneratorConfig
from engine.networks.frozen_synthesis import FrozenSynthesis
from engine.networks.stylegan2 import Modulation, Modulations, SynthesisBlock, SynthesisLayer, scale_channels

CONTEXT_STRENGTH = 0.5  # of the features of coarser blocks beside those of the feature block
SLACK_PX = 4.0  # a step, the refinement of handles, and the pixels that are blended
SMALLEST_WHOLE = 8  # blocks up to this resolution cost nothing that counts
WINDOW_SLOWDOWN = 1.25  # of a multiply-accumulate in a small window, on CPUs


@dataclass(frozen=True)
class FeaturePlan:
    """Which features a drag needs: the feature block and coarser blocks, and how far around each point."""

    until: int  # resolution of the feature block
    context: int  # number of coarser blocks that are watched beside it
    whole: int  # resolution of the last block that is computed whole
    reach: float  # cells of the feature block between a point and the farthest cell that is read

    @property
    def resolutions(self) -> list[int]:
        """The resolutions of the watched blocks, coarse to fine."""
        return [self.until >> k for k in range(self.context, -1, -1) if self.until >> k >= 4]

    def windows(self, centers: Tensor) -> dict[int, "Windows"]:
        """Return the windows of the first layer of every block that is not computed whole, coarse to fine.

        A first layer begins at even cells and reads one cell more on each side of half as many. A second layer returns one
        cell less on each side than it reads.

        Args:
            centers: [K, 2] cells of the feature block.
        """
        needed = Windows((centers - self.reach).floor().long(), math.ceil(2 * self.reach) + 2, self.until)
        found: dict[int, Windows] = {}
        while needed.size > self.whole:
            corner = torch.div(needed.corner - 1, 2, rounding_mode="floor") * 2
            found[needed.size] = Windows(corner, round_up_to_even(needed.side + 3), needed.size)
            needed = found[needed.size].inputs()
        return dict(reversed(found.items()))


def plan_features(config: GeneratorConfig, options: DragOptions, points: int, masked: bool) -> FeaturePlan:
    """Return the cheapest plan for a drag. The paper's mask term needs the feature block whole, the early one coarse blocks."""
    until = options.feature_resolution or default_feature_resolution(config.resolution)
    reach = reach_px(options, config.resolution) * until / config.resolution
    if not masked:
        copies = points if SOLVERS[options.solver].copies_per_point else 1
        return cheapest_plan(config, until, options.context_blocks, reach, points, copies)
    if options.mask_term == "paper":
        return FeaturePlan(until, 0, until, reach)
    return cheapest_plan(config, until, 0, reach, points, smallest_whole=EARLY_RESOLUTION // 2)


def reach_px(options: DragOptions, resolution: int) -> float:
    """Return how far from a handle's last position features are read, in pixels of the image.

    A handle is tracked, then the disc around it is read, and the disc one step on. Gauss-Newton also refines the handle by its
    disc and takes the slopes of the disc.
    """
    beyond = options.motion_radius + SOLVERS[options.solver].extra_reach_px
    return tracking_pixels(options, resolution) + beyond * resolution / REFERENCE_RESOLUTION + SLACK_PX


def cheapest_plan(
    config: GeneratorConfig, until: int, context: int, reach: float, points: int, copies: int = 1, *,
    smallest_whole: int = SMALLEST_WHOLE,
) -> FeaturePlan:  # fmt: skip
    """Return the plan that computes least: which blocks are computed whole.

    Args:
        until: resolution of the feature block.
        context: number of coarser blocks watched beside it.
        reach: cells of the feature block.
        points: number of points, each with windows of its own.
        copies: number of w+, each with whole blocks of its own.
        smallest_whole: blocks up to this resolution must be whole.
    """
    plans = [FeaturePlan(until, context, whole, reach) for whole in config.block_resolutions if smallest_whole <= whole < until]
    windowed = plans if config.architecture != "resnet" else []  # a resnet block has a branch beside its layers
    return min([FeaturePlan(until, context, until, reach), *windowed], key=lambda plan: cost(config, plan, points, copies))


def cost(config: GeneratorConfig, plan: FeaturePlan, points: int, copies: int) -> float:
    """Return the multiply-accumulates of one pass; those in windows count more, since they take longer."""
    total, windows = 0.0, plan.windows(torch.zeros(1, 2))
    for size in (size for size in config.block_resolutions if 4 < size <= plan.until):
        cells = copies * size**2 if size <= plan.whole else WINDOW_SLOWDOWN * points * windows[size].side ** 2
        channels = config.channels(size)
        total += cells * channels * 9 * (config.channels(size // 2) / 4 + channels)
    return total


@dataclass(frozen=True, eq=False)
class FeaturePass:
    """What one pass of the synthesis network computed."""

    maps: list[FeatureMap]  # of the watched blocks around all points, the feature block first
    blocks: dict[int, Tensor]  # outputs [B, C, f, f] of the blocks computed whole, by resolution, coarse to fine
    modulations: Modulations  # of each w+

    def detached_maps(self) -> list[FeatureMap]:
        """Return the maps without their graph."""
        return [each.detach() for each in self.maps]


def compute_features(
    synthesis: FrozenSynthesis, plan: FeaturePlan, ws: Tensor, points: Tensor, resolution: int, owner: Tensor | None = None
) -> FeaturePass:
    """Compute the watched features around points; those of coarser blocks count half.

    One block's features are alike all along an edge, where points would slide; coarser features know the place in the image.

    Args:
        ws: w+ [B, L, D].
        points: [K, 2] xy pixels of the image.
        resolution: of the image, pixels.
        owner: [K], the w+ that each point belongs to; None: there is only one.
    """
    network, modulations = synthesis.network, synthesis.modulations(ws)
    centers = (points + 0.5) * (plan.until / resolution) - 0.5  # [K, 2] cells of the feature block
    blocks = dict(network.blocks(modulations, plan.whole, "const"))
    maps = {size: cut_map(FeatureMap.whole(blocks[size], owner), centers, plan) for size in plan.resolutions if size in blocks}
    last = FeatureMap.whole(blocks[plan.whole], owner)
    per_point = modulations if owner is None else {name: each.select(owner) for name, each in modulations.items()}
    for size, windows in plan.windows(centers).items():
        x = windows.inputs().cut(last)  # [K, C, s / 2 + 2, s / 2 + 2]
        x = block_in_windows(network.block(size), f"b{size}", x, per_point, windows)  # [K, C', s - 2, s - 2]
        last = maps[size] = FeatureMap(x, windows.inner().corner, size)
    fine, *coarse = [maps[size] for size in reversed(plan.resolutions)]
    weighted = [replace(each, values=each.values * CONTEXT_STRENGTH) for each in coarse]
    return FeaturePass([fine, *weighted], blocks, modulations)


def cut_map(whole: FeatureMap, centers: Tensor, plan: FeaturePlan) -> FeatureMap:
    """Return what can be read of whole maps around centers [K, 2], given in cells of the feature block."""
    size = whole.size
    reach = plan.reach * size / plan.until
    if 2 * reach + 2 >= size:
        return whole
    corner = ((centers + 0.5) * (size / plan.until) - 0.5 - reach).floor().long()
    return FeatureMap(Windows(corner, math.ceil(2 * reach) + 2, size).cut(whole), corner, size)


@dataclass(frozen=True)
class Windows:
    """Squares of a map, one around each of K points."""

    corner: Tensor  # [K, 2] integers, (x, y) of the first cell
    side: int  # cells
    size: int  # cells of the whole map

    def inner(self) -> "Windows":
        """Return the windows without their outermost cells."""
        return Windows(self.corner + 1, self.side - 2, self.size)

    def inputs(self) -> "Windows":
        """Return the windows of the next coarser block that an up-sampling layer reads to fill these."""
        return Windows(self.corner // 2 - 1, self.side // 2 + 2, self.size // 2)

    @cached_property
    def cells(self) -> Tensor:
        """The cells along x and y, [K, 2, side]."""
        return torch.arange(self.side, device=self.corner.device) + self.corner[:, :, None]

    @cached_property
    def inside(self) -> Tensor:
        """Which cells the map has, [K, 1, side, side] bool."""
        x, y = ((self.cells >= 0) & (self.cells < self.size)).unbind(dim=1)
        return (y[:, :, None] & x[:, None, :])[:, None]

    def nearest(self) -> tuple[Tensor, Tensor]:
        """Return the cells of the map that are nearest to these: x [K, 1, side] and y [K, side, 1]."""
        x, y = self.cells.clamp(0, self.size - 1).unbind(dim=1)
        return x[:, None, :], y[:, :, None]

    def cut(self, source: FeatureMap) -> Tensor:
        """Return [K, C, side, side] of a map, or of windows that hold these; zero outside the map."""
        sources, channels, side = source.values.shape[:3]
        which = torch.arange(sources, device=self.corner.device) if source.owner is None else source.owner  # [K]
        x, y = self.nearest()
        first = which * side**2 - source.corner[:, 1] * side - source.corner[:, 0]  # where the map's cell (0, 0) would be
        cells = (y * side + x + first[:, None, None]).flatten()  # [K * side * side]
        rows = source.values.permute(0, 2, 3, 1).reshape(-1, channels)  # no copy where channels lie last
        found = rows.index_select(0, cells).view(len(self.corner), self.side, self.side, channels)
        return found.permute(0, 3, 1, 2) * self.inside


def block_in_windows(block: SynthesisBlock, name: str, x: Tensor, modulations: Modulations, windows: Windows) -> Tensor:
    """Return a block's output [K, C', s - 2, s - 2] in windows of its first layer [K, s x s]; x is [K, C, s/2 + 2, s/2 + 2]."""
    x = layer_in_windows(block.conv0, x, modulations[f"{name}.conv0"], windows)  # [K, C', s, s]
    return layer_in_windows(block.conv1, x, modulations[f"{name}.conv1"], windows.inner())  # [K, C', s - 2, s - 2]


def layer_in_windows(layer: SynthesisLayer, x: Tensor, modulation: Modulation, windows: Windows) -> Tensor:
    """Return a layer's output in the windows, zero outside the map; x holds everything that the layer reads."""
    x = layer.convolve(scale_channels(x, modulation.scale), padding=0)
    across, down = windows.nearest()
    return layer.activate(x, modulation, layer.noise_const[down, across]) * windows.inside


def round_up_to_even(number: int) -> int:
    return number + number % 2
