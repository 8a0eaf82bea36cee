"""The part of a frozen generator that drags run through, made once for all of them."""

import copy
import threading
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from engine.generator import FullyConnectedLayer, Generator, ModulatedLayer, Modulations, SynthesisNetwork, modulate

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, eq=False)
class Trunk:
    synthesis: SynthesisNetwork
    layers: list[ModulatedLayer]  # those that a drag needs
    energies: dict[str, Tensor | None]  # of each layer

    def modulations(self, ws: Tensor) -> Modulations:
        """Of w+ [B, L, D]."""
        return modulate(self.layers, ws, self.energies)


known: WeakKeyDictionary[Generator, dict[tuple[int, bool, Precision], Trunk]] = WeakKeyDictionary()
making = threading.Lock()


def trunk_of(generator: Generator, until: int, *, rgb: bool, precision: Precision) -> Trunk:
    """Up to the block of resolution `until`; the same object each time, of weights that nobody changes any more.

    Args:
        rgb: with the ToRGB layers.
        precision: of the convolutions.
    """
    key = (until, rgb, precision)
    with making:
        made = known.setdefault(generator, {})
        if key not in made:
            made[key] = make(generator.synthesis, until, rgb, precision)
        return made[key]


@torch.no_grad()
def make(synthesis: SynthesisNetwork, until: int, rgb: bool, precision: Precision) -> Trunk:
    if precision == "bfloat16":
        synthesis = lowered(synthesis, torch.bfloat16, until)
    layers = synthesis.layers(until=until, rgb=rgb)
    return Trunk(synthesis, layers, {name: layer.energy() for name, _, layer in layers})


def lowered(synthesis: SynthesisNetwork, dtype: torch.dtype, until: int) -> SynthesisNetwork:
    """The same network, its convolutions up to the block `until` in a shorter floating type; all else is shared."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*synthesis.parameters(), *synthesis.buffers())}
    low = copy.deepcopy(synthesis, shared)
    for module in (module for resolution in low.resolutions(until) for module in low.block(resolution).modules()):
        for name in ("weight", "const"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, nn.Parameter) and not isinstance(module, FullyConnectedLayer):
                setattr(module, name, nn.Parameter(tensor.data.to(dtype), requires_grad=False))
    return low
