"""The part of a frozen synthesis network that drags run through, prepared once for all drags of a generator."""

import copy
import threading
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn

from engine.networks.config import Precision
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


@dataclass(frozen=True, eq=False)
class FrozenSynthesis:
    """A synthesis network up to one block, whose weights nobody changes any more."""

    network: SynthesisNetwork
    layers: list[ModulatedLayer]  # up to that block
    styles: dict[str, Style]  # of each layer, by its name
    caches: dict[str, Any] = field(default_factory=dict)  # of others, by their name; they live as long as this object

    def modulations(self, ws: Tensor) -> Modulations:
        """Return how w+ [B, L, D] modulates each layer."""
        return modulate(self.layers, ws, self.styles)


prepared: WeakKeyDictionary[Generator, dict[tuple[int, bool, Precision, bool], FrozenSynthesis]] = WeakKeyDictionary()
preparing = threading.Lock()


def frozen_synthesis(generator: Generator, until: int, *, rgb: bool, precision: Precision, windowed: bool) -> FrozenSynthesis:
    """Return the synthesis network up to the block of resolution `until`: the same object for equal arguments.

    Args:
        generator: frozen; what is made of its weights is kept as long as the generator.
        rgb: include the ToRGB layers.
        precision: of the convolutions.
        windowed: maps are small windows. PackedConvKernel weights are worth their memory then; for whole maps memory counts more.
    """
    key = (until, rgb, precision, windowed)
    with preparing:
        known = prepared.setdefault(generator, {})
        if key not in known:
            known[key] = prepare(generator.synthesis, until, rgb, precision, windowed)
            finalize(generator, known[key].caches.clear)  # a cache may refer to this object: break the circle at once
        return known[key]


@torch.no_grad()
def prepare(synthesis: SynthesisNetwork, until: int, rgb: bool, precision: Precision, windowed: bool) -> FrozenSynthesis:
    network = copy_in_dtype(synthesis, torch.bfloat16 if precision == "bfloat16" else None, until)
    layers = network.layers(until=until, rgb=rgb)
    styles = {name: layer.style() for name, _, layer in layers}
    for layer in (layer for _, _, layer in layers if isinstance(layer, SynthesisLayer)):
        layer.use_kernel(kernel_for_windows(layer) if windowed else PlainConvKernel.of_layer(layer.weight, layer.up))
    return FrozenSynthesis(network, layers, styles)


def kernel_for_windows(layer: SynthesisLayer) -> ConvKernel | None:
    """Return the fastest kernel for small maps; None on a CPU with few weights, where PyTorch's own is as fast."""
    if layer.weight.device.type != "cpu":
        return PlainConvKernel.of_layer(layer.weight, layer.up)
    return PackedConvKernel(layer.weight, layer.up) if can_pack(layer.weight) else None


def copy_in_dtype(synthesis: SynthesisNetwork, dtype: torch.dtype | None, until: int) -> SynthesisNetwork:
    """Return a copy whose convolutions up to the block `until` have another floating type; all other tensors are shared."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*synthesis.parameters(), *synthesis.buffers())}
    network = copy.deepcopy(synthesis, shared)
    for resolution in network.resolutions(until) if dtype is not None else ():
        for module in network.block(resolution).modules():
            cast_weights(module, dtype)
    return network


def cast_weights(module: nn.Module, dtype: torch.dtype | None) -> None:
    """Cast what is convolved, but not the affine layers that modulate it."""
    for name in ("weight", "const"):
        tensor = getattr(module, name, None)
        if isinstance(tensor, nn.Parameter) and not isinstance(module, FullyConnectedLayer):
            setattr(module, name, nn.Parameter(tensor.data.to(dtype), requires_grad=False))
