"""The part of a frozen generator that drags run through, made once for all of them."""

import copy
import threading
from dataclasses import dataclass, field
from typing import Any, Literal
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn

from engine.networks.conv_kernels import ConvKernel, PackedConvKernel, PlainConvKernel, can_pack
from engine.networks.stylegan2 import (
    FullyConnectedLayer,
    Generator,
    ModulatedLayer,
    Modulations,
    Style,
    SynthesisLayer,
    SynthesisNetwork,
    modulate,
)  # fmt: skip

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class Trunk:
    synthesis: SynthesisNetwork
    layers: list[ModulatedLayer]  # those that a drag needs
    styles: dict[str, Style]  # of each layer
    beside: dict[str, Any] = field(default_factory=dict)  # what lives as long as it does

    def modulations(self, ws: Tensor) -> Modulations:
        """Of w+ [B, L, D]."""
        return modulate(self.layers, ws, self.styles)


known: WeakKeyDictionary[Generator, dict[tuple[int, bool, Precision, bool], Trunk]] = WeakKeyDictionary()
making = threading.Lock()


def trunk_of(generator: Generator, until: int, *, rgb: bool, precision: Precision, windowed: bool) -> Trunk:
    """Up to the block of resolution `until`; the same object each time, of weights that nobody changes any more.

    Args:
        rgb: with the ToRGB layers.
        precision: of the convolutions.
        windowed: whether maps are small: then packed weights are worth their memory, else what large maps keep counts.
    """
    key = (until, rgb, precision, windowed)
    with making:
        made = known.setdefault(generator, {})
        if key not in made:
            made[key] = make(generator.synthesis, until, rgb, precision, windowed)
            finalize(generator, made[key].beside.clear)  # which may know the trunk: nothing else would end such a circle soon
        return made[key]


@torch.no_grad()
def make(synthesis: SynthesisNetwork, until: int, rgb: bool, precision: Precision, windowed: bool) -> Trunk:
    synthesis = copied(synthesis, torch.bfloat16 if precision == "bfloat16" else None, until)
    layers = synthesis.layers(until=until, rgb=rgb)
    styles = {name: layer.style() for name, _, layer in layers}
    for layer in (layer for _, _, layer in layers if isinstance(layer, SynthesisLayer)):
        layer.use_kernel(small_maps(layer) if windowed else PlainConvKernel.of_layer(layer.weight, layer.up))
    return Trunk(synthesis, layers, styles)


def small_maps(layer: SynthesisLayer) -> ConvKernel | None:
    """How their convolutions are fastest; on a CPU those of few weights are so without us, and keep little."""
    if layer.weight.device.type != "cpu":
        return PlainConvKernel.of_layer(layer.weight, layer.up)
    return PackedConvKernel(layer.weight, layer.up) if can_pack(layer.weight) else None


def copied(synthesis: SynthesisNetwork, dtype: torch.dtype | None, until: int) -> SynthesisNetwork:
    """The same network, its convolutions up to the block `until` in another floating type; all else is shared."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*synthesis.parameters(), *synthesis.buffers())}
    copy_ = copy.deepcopy(synthesis, shared)
    for resolution in copy_.resolutions(until) if dtype is not None else ():
        for module in copy_.block(resolution).modules():
            lower(module, dtype)
    return copy_


def lower(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Of a block: what is convolved, but not what modulates it."""
    for name in ("weight", "const"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, nn.Parameter) and not isinstance(module, FullyConnectedLayer):
            setattr(module, name, nn.Parameter(tensor.data.to(dtype), requires_grad=False))
