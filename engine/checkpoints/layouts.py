"""Reading StyleGAN2 checkpoints of four layouts, with all tensors renamed to NVIDIA's names. This module needs no torch.

The content tells the layout: NVIDIA's persistent pickles (and a bare generator that torch.save wrote), legacy TensorFlow
pickles, rosinality's and pSp's .pt files, mmagic's and mmgeneration's .pth files.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoints.budget import ReadingBudget
from engine.checkpoints.torch_files import read_checkpoint_file
from engine.checkpoints.values import (
    PickledObject,
    expect_dict,
    expect_number,
    expect_object,
    expect_pairs,
    expect_tensor,
    expect_text,
)
from engine.errors import CheckpointDamaged, CheckpointUnsupported
from engine.networks.config import RESOLUTIONS
from engine.printable import quote

Tensors = dict[str, np.ndarray]
SETTINGS = {"architecture": expect_text, "conv_clamp": expect_number}  # attributes of NVIDIA's modules that are looked at
NUMBER = r"(0|[1-9][0-9]{0,3})"  # in the names of blocks and layers
BLOCKS = [4, 8, 16, *RESOLUTIONS]  # pixels


@dataclass(frozen=True, kw_only=True)
class ImportedDiscriminator:
    """A discriminator of residual architecture and without classes, from the file of its generator."""

    tensors: Tensors  # by canonical name, without the resampling filters
    conv_clamp: float | None
    budget: ReadingBudget  # what is left for writing it


@dataclass(frozen=True, kw_only=True)
class ImportedGenerator:
    """A generator with its tensors as the file has them, under canonical names."""

    layout: str  # nvidia, tensorflow, rosinality or mmagic
    tensors: Tensors  # by canonical name, without the resampling filters
    conv_clamp: float | None
    budget: ReadingBudget  # what is left for writing it
    architecture: str = "skip"
    discriminator: ImportedDiscriminator | None = None


def read_generator_file(path: Path, budget: ReadingBudget | None = None) -> ImportedGenerator:
    """Recognize the layout of a checkpoint file and rename its generator's tensors.

    Args:
        budget: the work that may be done; None: as much as files of this size may take.

    Raises:
        CheckpointDamaged: the file cannot be read.
        CheckpointUnsupported: the file holds something else than a StyleGAN2 generator that this engine computes.
    """
    budget = budget or ReadingBudget.for_file(path.stat().st_size)
    value = read_checkpoint_file(path, budget)
    layouts = {"nvidia": read_nvidia, "tensorflow": read_tensorflow, "rosinality": read_rosinality, "mmagic": read_mmagic}
    for layout, read in layouts.items():
        try:
            generator = read(value, budget)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise CheckpointDamaged(f"{path.name} looks like a {layout} checkpoint but is not whole: {error}") from error
        except MemoryError as error:
            raise CheckpointDamaged(f"{path.name} takes more memory than it may") from error
        if generator is not None:
            return generator
    raise CheckpointUnsupported(f"{path.name} holds no StyleGAN2 generator in a layout that is known")


def read_nvidia(value: Any, budget: ReadingBudget) -> ImportedGenerator | None:
    """Read a dictionary with the module G_ema and perhaps the discriminator D, or a generator's module alone.

    Returns:
        None if the value has another layout.
    """
    module = value.get("G_ema") if isinstance(value, dict) else value
    if not isinstance(module, PickledObject) or "_modules" not in module.state:
        return None
    flat = flatten_module(module, budget)
    if any(name.startswith("synthesis.input.") or re.match(r"synthesis\.L\d+_", name) for name in flat.tensors):
        raise CheckpointUnsupported("the file holds a StyleGAN3 (alias-free) generator; only StyleGAN2 is computed here")
    return ImportedGenerator(
        layout="nvidia",
        tensors=flat.tensors,
        conv_clamp=flat.shared_setting("conv_clamp", None),
        architecture=flat.shared_setting("architecture", "skip"),
        budget=budget,
        discriminator=read_nvidia_discriminator(value.get("D") if isinstance(value, dict) else None, budget),
    )


def read_nvidia_discriminator(module: Any, budget: ReadingBudget) -> ImportedDiscriminator | None:
    """Read the module D.

    Returns:
        None if it is missing, or not computed by this engine: conditional, or of another architecture.
    """
    if not isinstance(module, PickledObject) or "_modules" not in module.state:
        return None
    flat = flatten_module(module, budget)
    if (expect_number("c_dim", module.state.get("c_dim", 0)) or 0) != 0:
        return None
    if flat.shared_setting("architecture", "resnet") != "resnet":
        return None
    clamp = flat.shared_setting("conv_clamp", None)
    return ImportedDiscriminator(tensors=flat.tensors, conv_clamp=clamp, budget=budget)


@dataclass(frozen=True)
class FlatModule:
    """The tensors and settings of a module and its submodules by dotted name."""

    tensors: Tensors
    settings: dict[str, list[Any]]  # values by the last part of the name; of residual branches, which never clamp, none

    def shared_setting(self, name: str, default: Any) -> Any:
        """Return the value of a setting that all layers share.

        Args:
            default: for a network without the setting.

        Raises:
            CheckpointUnsupported: layers differ.
        """
        first, *others = self.settings[name] or [default]
        for other in others:
            if other != first:
                raise CheckpointUnsupported(f"the network's layers differ in {name}: {quote(first)}, {quote(other)}")
        return first


def flatten_module(root: PickledObject, budget: ReadingBudget) -> FlatModule:
    """Return all tensors, and those attributes that are settings, of a module and its submodules.

    A module that lies in several others is visited as often as its name differs, each time at the budget's expense.
    """
    flat = FlatModule({}, {name: [] for name in SETTINGS})
    waiting = [("", root)]
    while waiting:
        prefix, module = waiting.pop()
        state = expect_dict(f"the state of {prefix}", module.state)
        arrays = expect_dict(f"{prefix}_parameters", state.get("_parameters", {})) | expect_dict(
            f"{prefix}_buffers", state.get("_buffers", {})
        )
        children = expect_dict(f"{prefix}_modules", state.get("_modules", {}))
        spend_on_names(budget, prefix, [*state, *arrays, *children])
        for name, array in arrays.items():
            if array is not None and name != "resample_filter":  # always the same one
                flat.tensors[prefix + name] = expect_tensor(prefix + name, array)
        if prefix and ".skip." not in prefix:
            for name, expect in SETTINGS.items():
                if name in state:
                    flat.settings[name].append(expect(prefix + name, state[name]))
        waiting += [(f"{prefix}{name}.", child) for name, child in children.items() if isinstance(child, PickledObject)]
    return flat


def spend_on_names(budget: ReadingBudget, prefix: str, names: list[str]) -> None:
    """Take off what it costs to visit values by these names within a prefix."""
    budget.spend_operations(1 + len(names))
    budget.spend_bytes(sum(len(prefix) + len(name) for name in names))


def read_tensorflow(value: Any, budget: ReadingBudget) -> ImportedGenerator | None:
    """Read a tuple (G, D, Gs) of networks, of which Gs is the averaged generator.

    Returns:
        None if the value has another layout.
    """
    if not (isinstance(value, tuple) and len(value) == 3 and isinstance(value[2], PickledObject)):
        return None
    if value[2].class_name != "Network":
        return None
    state = expect_dict("Gs", value[2].state)
    settings = dict(expect_dict("static_kwargs", state["static_kwargs"]))
    variables = expect_pairs("variables", state["variables"])
    components = expect_dict("components", state["components"])
    for part in ("mapping", "synthesis"):
        component = expect_dict(part, expect_object(part, components[part]).state)
        found = expect_pairs(f"variables of {part}", component["variables"])
        variables = variables | {f"{part}/{name}": array for name, array in found.items()}
        settings |= expect_dict(f"static_kwargs of {part}", component["static_kwargs"])
    if "synthesis/4x4/Const/const" not in variables or "synthesis/4x4/Conv/mod_weight" not in variables:
        raise CheckpointUnsupported("the file holds a TensorFlow network that is no StyleGAN2 generator (StyleGAN1?)")
    if expect_number("label_size", settings.get("label_size", 0)) and "mapping/LabelConcat/weight" in variables:
        raise CheckpointUnsupported(
            "the file holds a conditional generator in TensorFlow's first form, whose labels are not normalized"
        )
    return ImportedGenerator(
        layout="tensorflow",
        tensors=dict(filter(None, (convert_tensorflow_variable(name, array) for name, array in variables.items()))),
        conv_clamp=expect_number("conv_clamp", settings.get("conv_clamp")),
        architecture=expect_text("architecture", settings.get("architecture", "skip")),
        budget=budget,
    )


def convert_tensorflow_variable(name: str, value: Any) -> tuple[str, np.ndarray] | None:
    """Return the canonical name of a TensorFlow variable and its array with the axes in our order; None if unused."""
    if name == "dlatent_avg":
        return "mapping.w_avg", expect_tensor(name, value)
    if match := re.fullmatch(rf"mapping/Dense{NUMBER}/(weight|bias)", name):
        return f"mapping.fc{match[1]}.{match[2]}", expect_tensor(name, value).T
    if match := re.fullmatch(r"mapping/LabelEmbed/(weight|bias)", name):
        return f"mapping.embed.{match[1]}", expect_tensor(name, value).T
    if name == "synthesis/4x4/Const/const":
        return "synthesis.b4.const", expect_tensor(name, value, axes=4)[0]
    if match := re.fullmatch(rf"synthesis/noise{NUMBER}", name):
        return f"synthesis.{layer_name(name, match[1])}.noise_const", expect_tensor(name, value, axes=4)[0, 0]
    layers, parts = "Conv|Conv0_up|Conv1|ToRGB|Skip", "weight|mod_weight|mod_bias|bias|noise_strength"
    match = re.fullmatch(rf"synthesis/{NUMBER}x\1/({layers})/({parts})", name)
    if match is None:
        return None
    layer = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb", "Skip": "skip"}[match[2]]
    prefix = f"synthesis.b{match[1]}.{layer}"
    if match[3] == "weight":
        array = expect_tensor(name, value, axes=4)
        oriented = array[::-1, ::-1] if layer in ("conv0", "skip") else array
        return f"{prefix}.weight", oriented.transpose(3, 2, 0, 1)
    array = expect_tensor(name, value)
    if match[3] == "mod_weight":
        return f"{prefix}.affine.weight", array.T
    if match[3] == "mod_bias":
        return f"{prefix}.affine.bias", array + 1  # stored as the offset from 1
    return f"{prefix}.{match[3]}", array


def read_rosinality(value: Any, budget: ReadingBudget) -> ImportedGenerator | None:
    """Read a dictionary with the state dict g_ema, or pSp's state dict with the prefix decoder.

    Returns:
        None if the value has another layout.
    """
    if not isinstance(value, dict):
        return None
    state = value.get("g_ema")
    if state is None and isinstance(value.get("state_dict"), dict):
        whole = expect_dict("state_dict", value["state_dict"])
        state = {key.removeprefix("decoder."): a for key, a in whole.items() if key.startswith("decoder.")}
    if not isinstance(state, dict) or "input.input" not in state:
        return None
    state = expect_dict("g_ema", state)
    names = {"conv.weight": "weight", "noise.weight": "noise_strength", "activate.bias": "bias", "bias": "bias"}
    names |= {"conv.modulation.weight": "affine.weight", "conv.modulation.bias": "affine.bias"}
    tensors = {"synthesis.b4.const": expect_tensor("input.input", state["input.input"], axes=4)[0]}
    for key, array in state.items():
        if match := re.fullmatch(rf"style\.{NUMBER}\.(weight|bias)", key):
            tensors[f"mapping.fc{int(match[1]) - 1}.{match[2]}"] = expect_tensor(key, array)
        elif match := re.fullmatch(r"noises\.noise_(\d+)", key):
            tensors[f"synthesis.{layer_name(key, match[1])}.noise_const"] = expect_tensor(key, array, axes=4)[0, 0]
        elif renamed := rename_sequential_layer(key, names):
            tensors[renamed] = expect_tensor(key, array)
    if value.get("latent_avg") is not None:
        average = expect_tensor("latent_avg", value["latent_avg"])
        tensors["mapping.w_avg"] = average if average.ndim == 1 else average[0]
    return ImportedGenerator(layout="rosinality", tensors=tensors, conv_clamp=None, budget=budget)


def read_mmagic(value: Any, budget: ReadingBudget) -> ImportedGenerator | None:
    """Read a dictionary with a state dict whose generator has the prefix generator_ema or generator.

    Returns:
        None if the value has another layout.
    """
    state = value.get("state_dict") if isinstance(value, dict) else None
    if not isinstance(state, dict):
        return None
    state = expect_dict("state_dict", state)
    for prefix in ("generator_ema.module.", "generator_ema.", "generator."):
        generator = {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
        if "constant_input.input" in generator:
            break
    else:
        return None
    names = {"conv.weight_orig": "weight", "noise_injector.weight": "noise_strength", "activate.bias": "bias", "bias": "bias"}
    names |= {"conv.style_modulation.linear.weight_orig": "affine.weight", "conv.style_modulation.bias": "affine.bias"}
    const = expect_tensor("constant_input.input", generator["constant_input.input"], axes=4)
    tensors = {"synthesis.b4.const": const[0]}
    for key, array in generator.items():
        if match := re.fullmatch(rf"style_mapping\.{NUMBER}\.(linear\.weight_orig|bias)", key):
            part = "weight" if "weight" in match[2] else "bias"
            tensors[f"mapping.fc{int(match[1]) - 1}.{part}"] = expect_tensor(key, array)
        elif match := re.fullmatch(r"injected_noise_(\d+)", key):
            tensors[f"synthesis.{layer_name(key, match[1])}.noise_const"] = expect_tensor(key, array, axes=4)[0, 0]
        elif key == "w_avg":
            tensors["mapping.w_avg"] = expect_tensor(key, array)
        elif renamed := rename_sequential_layer(key, names):
            tensors[renamed] = expect_tensor(key, array)
    return ImportedGenerator(layout="mmagic", tensors=tensors, conv_clamp=None, budget=budget)


def rename_sequential_layer(key: str, names: dict[str, str]) -> str | None:
    """Rename conv1.X, convs.N.X, to_rgb1.X and to_rgbs.N.X to names such as synthesis.b8.conv0.X; return None for other keys.

    Args:
        names: X' by X.

    Raises:
        CheckpointDamaged: N is more than a generator has.
    """
    match = re.fullmatch(r"(conv1|to_rgb1|convs\.(\d+)|to_rgbs\.(\d+))\.(.+)", key)
    if match is None or match[4] not in names:
        return None
    if match[1].startswith("to_rgb"):
        block = 0 if match[3] is None else expect_index(key, match[3], len(BLOCKS) - 1) + 1
        return f"synthesis.b{BLOCKS[block]}.torgb.{names[match[4]]}"
    layer = "b4.conv1" if match[2] is None else layer_name(key, match[2], offset=1)
    return f"synthesis.{layer}.{names[match[4]]}"


def layer_name(key: str, digits: str, offset: int = 0) -> str:
    """Return the name of a convolution by its index: b4.conv1, b8.conv0, b8.conv1, b16.conv0 ...

    Args:
        key: what the file calls it.
        digits: the index that the file has.
        offset: is added to the index.

    Raises:
        CheckpointDamaged: no generator has as many.
    """
    index = expect_index(key, digits, 2 * len(BLOCKS) - 1 - offset) + offset
    return f"b{BLOCKS[(index + 1) // 2]}.conv{(index + 1) % 2}"


def expect_index(key: str, digits: str, count: int) -> int:
    """Return the index that is part of a key. Raises CheckpointDamaged unless it is below `count`."""
    if len(digits) > 4 or not digits.isascii() or int(digits) >= count:
        raise CheckpointDamaged(f"{quote(key)} is of a layer that no generator of up to {RESOLUTIONS[-1]} px has")
    return int(digits)
