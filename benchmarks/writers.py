"""Writes a generator in each public checkpoint layout, for tests and the import benchmark.

Pickles name classes of packages that are not installed here; modules of the same names exist while a file is written.
"""

import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from engine.networks.stylegan2 import Generator

Tensors = dict[str, Tensor]


def arrays(generator: Generator) -> dict[str, np.ndarray]:
    """Return the state dict as arrays."""
    return {name: tensor.numpy() for name, tensor in generator.state_dict().items()}


def layer_index(block: int, layer: str) -> int:
    """Return the number of a layer: b4.conv1 is 0, b8.conv0 is 1, b8.conv1 is 2."""
    return 0 if block == 4 else 2 * block.bit_length() - 8 + int(layer[-1]) + 1


@contextmanager
def temporary_module(name: str) -> Iterator[ModuleType]:
    """Make a module that pickle can name, with the packages it is in, and remove them afterwards."""
    parts = name.split(".")
    made = {".".join(parts[: k + 1]): ModuleType(parts[k]) for k in range(len(parts))}
    sys.modules.update(made)
    try:
        yield made[name]
    finally:
        for each in made:
            del sys.modules[each]


class Persistent:
    """A module as torch_utils.persistence pickles it: a call with everything the object held."""

    function: Callable[[object], None]

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.meta = {"type": "class", "version": 6, "module_src": "raise SystemExit", "class_name": class_name, "state": state}

    def __reduce__(self) -> tuple[Any, ...]:
        return Persistent.function, (self.meta,)


def nvidia(generator: Generator, path: Path, *, fp16_blocks: int = 0) -> None:
    """Write {"G_ema": ...} of stylegan2-ada-pytorch.

    Args:
        fp16_blocks: how many of the highest blocks compute in half precision; their weights stay in float32.
    """
    config = generator.config
    with temporary_module("torch_utils.persistence") as module:

        def _reconstruct_persistent_obj(meta: object) -> None:
            raise AssertionError("never called")

        _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
        _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
        module.__dict__["_reconstruct_persistent_obj"] = _reconstruct_persistent_obj
        Persistent.function = _reconstruct_persistent_obj
        half = config.block_resolutions[len(config.block_resolutions) - fp16_blocks :]
        tree = persistent_module(generator, "Generator", "", config.conv_clamp, config.architecture, half)
        path.write_bytes(pickle.dumps({"training_set_kwargs": None, "G": None, "D": None, "G_ema": tree, "augment_pipe": None}))


def persistent_module(
    module: nn.Module, class_name: str, name: str, clamp: float | None, architecture: str, half: list[int]
) -> Persistent:
    """Return a module and its children as they are pickled; `half` are the resolutions of half precision."""
    children = OrderedDict()
    for child, inner in module.named_children():
        children[child] = persistent_module(inner, type(inner).__name__, f"{name}.{child}", clamp, architecture, half)
    state: dict[str, Any] = {"training": False, "_forward_hooks": OrderedDict(), "_modules": children}
    state["_parameters"] = OrderedDict((key, value) for key, value in module._parameters.items())
    state["_buffers"] = OrderedDict((key, value) for key, value in module._buffers.items())
    state["weight_gain"] = np.float64(0.1)  # as NVIDIA's are: numbers of numpy, not of Python
    if class_name == "SynthesisBlock":
        state |= {"architecture": architecture, "use_fp16": int(name.rsplit(".b", 1)[1]) in half}
    if class_name in ("SynthesisLayer", "ToRGBLayer"):
        state["conv_clamp"] = clamp
    if class_name == "SkipLayer":
        state["conv_clamp"] = None
    return Persistent(class_name, state)


class Network:
    """The class dnnlib.tflib.network.Network, which holds nothing but its state."""

    def __init__(self, state: dict[str, Any]) -> None:
        self.__dict__ = state


def tensorflow(generator: Generator, path: Path) -> None:
    """Write (G, D, Gs) of the TensorFlow code, version 4."""
    config = generator.config
    parts: dict[str, list[tuple[str, np.ndarray]]] = {"mapping": [], "synthesis": []}
    for name, array in arrays(generator).items():
        if renamed := tensorflow_name(name, array):
            part, rest = renamed[0].split("/", 1)
            parts[part].append((rest, renamed[1]))
    with temporary_module("dnnlib.tflib.network") as module:
        Network.__module__, Network.__qualname__ = "dnnlib.tflib.network", "Network"
        module.__dict__["Network"] = Network
        components = {
            part: Network({"version": 4, "name": part, "static_kwargs": {}, "components": {}, "variables": variables})
            for part, variables in parts.items()
        }
        kwargs: dict[str, object] = {
            "resolution": config.resolution,
            "label_size": config.c_dim,
            "architecture": config.architecture,
        }
        kwargs |= {"conv_clamp": config.conv_clamp, "fmap_base": config.channel_base // 2}
        average = [("dlatent_avg", arrays(generator)["mapping.w_avg"]), ("lod", np.float32(0))]
        state = {"version": 4, "name": "Gs", "static_kwargs": kwargs, "components": components, "variables": average}
        whole = Network(state | {"build_module_src": "raise SystemExit", "build_func_name": "G_main"})
        path.write_bytes(pickle.dumps((None, None, whole)))


def tensorflow_name(name: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Return a tensor's name and value in the TensorFlow layout; None if that layout does not store it."""
    part, *way, last = name.split(".")
    if last == "resample_filter" or name == "mapping.w_avg":
        return None
    if part == "mapping":
        layer = "LabelEmbed" if way[0] == "embed" else f"Dense{way[0][2:]}"
        return f"mapping/{layer}/{last}", array.T
    block = int(way[0][1:])
    if last == "const":
        return "synthesis/4x4/Const/const", array[None]
    if last == "noise_const":
        return f"synthesis/noise{layer_index(block, way[1])}", array[None, None]
    layer = {"conv0": "Conv0_up", "conv1": "Conv" if block == 4 else "Conv1", "torgb": "ToRGB", "skip": "Skip"}[way[1]]
    prefix = f"synthesis/{block}x{block}/{layer}"
    if way[-1] == "affine":
        return (f"{prefix}/mod_weight", array.T) if last == "weight" else (f"{prefix}/mod_bias", array - 1)
    if last == "weight":
        turned = array.transpose(2, 3, 1, 0)
        return f"{prefix}/weight", turned[::-1, ::-1] if layer in ("Conv0_up", "Skip") else turned
    return f"{prefix}/{last}", array


def rosinality(generator: Generator, path: Path) -> None:
    """Write rosinality's layout."""
    names = {"weight": "conv.weight", "noise_strength": "noise.weight", "bias": "activate.bias", "rgb.bias": "bias"}
    names |= {"affine.weight": "conv.modulation.weight", "affine.bias": "conv.modulation.bias"}
    state = sequential(generator, names, mapping="style.{}.{}", weight="weight", const="input.input", noise="noises.noise_{}")
    torch.save({"g_ema": state, "latent_avg": torch.from_numpy(arrays(generator)["mapping.w_avg"])}, path)


def mmagic(generator: Generator, path: Path) -> None:
    """Write MMagic's layout."""
    names = {"weight": "conv.weight_orig", "noise_strength": "noise_injector.weight", "bias": "activate.bias", "rgb.bias": "bias"}
    names |= {"affine.weight": "conv.style_modulation.linear.weight_orig", "affine.bias": "conv.style_modulation.bias"}
    state = sequential(
        generator, names, mapping="style_mapping.{}.{}", weight="linear.weight_orig", const="constant_input.input",
        noise="injected_noise_{}",
    )  # fmt: skip
    state["w_avg"] = torch.from_numpy(arrays(generator)["mapping.w_avg"])
    torch.save({"meta": {}, "state_dict": {f"generator_ema.{key}": value for key, value in state.items()}}, path)


def sequential(generator: Generator, names: dict[str, str], *, mapping: str, weight: str, const: str, noise: str) -> Tensors:
    """Return the state dict of the layouts that number their layers: conv1, convs.N, to_rgb1, to_rgbs.N."""
    state: Tensors = {}
    for name, array in arrays(generator).items():
        part, *way, last = name.split(".")
        value = torch.from_numpy(array.copy())
        if last == "resample_filter" or name == "mapping.w_avg":
            continue
        if part == "mapping":
            state[mapping.format(int(way[0][2:]) + 1, weight if last == "weight" else "bias")] = value
        elif last == "const":
            state[const] = value[None]
        elif last == "noise_const":
            state[noise.format(layer_index(int(way[0][1:]), way[1]))] = value[None, None]
        else:
            state |= dict([numbered_layer(int(way[0][1:]), way[1:], last, value, names)])
    return state


def numbered_layer(block: int, way: list[str], last: str, value: torch.Tensor, names: dict[str, str]) -> tuple[str, torch.Tensor]:
    """Return the name and value of a synthesis layer's tensor in a layout that numbers its layers."""
    rgb, k = way[0] == "torgb", block.bit_length() - 4  # 8 -> 0, 16 -> 1
    first, later = ("to_rgb1", f"to_rgbs.{k}") if rgb else ("conv1", f"convs.{2 * k + int(way[0] == 'conv1')}")
    prefix = first if block == 4 else later
    if "affine" in way:
        return f"{prefix}.{names[f'affine.{last}']}", value
    if last == "weight":
        return f"{prefix}.{names['weight']}", value[None]
    if last == "noise_strength":
        return f"{prefix}.{names[last]}", value[None]
    return (f"{prefix}.{names['rgb.bias']}", value[None, :, None, None]) if rgb else (f"{prefix}.{names['bias']}", value)


WRITERS: dict[str, Callable[[Generator, Path], None]] = {
    "nvidia": nvidia,
    "tensorflow": tensorflow,
    "rosinality": rosinality,
    "mmagic": mmagic,
}
