"""Reading StyleGAN2 checkpoints of four layouts, with all tensors renamed to NVIDIA's names. This module needs no torch.

The content tells the layout: NVIDIA's persistent pickles (and a bare generator that torch.save wrote), legacy TensorFlow
pickles, rosinality's and pSp's .pt files, mmagic's and mmgeneration's .pth files.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoints.torch_files import PickledObject, read_checkpoint_file
from engine.errors import CheckpointDamaged, CheckpointUnsupported

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ImportedDiscriminator:
    """A discriminator of residual architecture and without classes, from the file of its generator."""

    tensors: Tensors  # by canonical name, without the resampling filters
    conv_clamp: float | None


@dataclass(frozen=True, kw_only=True)
class ImportedGenerator:
    """A generator with its tensors as the file has them, under canonical names."""

    layout: str  # nvidia, tensorflow, rosinality or mmagic
    tensors: Tensors  # by canonical name, without the resampling filters
    conv_clamp: float | None
    architecture: str = "skip"
    discriminator: ImportedDiscriminator | None = None


def read_generator_file(path: Path) -> ImportedGenerator:
    """Recognize the layout of a checkpoint file and rename its generator's tensors.

    Raises:
        CheckpointDamaged: the file cannot be read.
        CheckpointUnsupported: the file holds something else than a StyleGAN2 generator that this engine computes.
    """
    value = read_checkpoint_file(path)
    layouts = {"nvidia": read_nvidia, "tensorflow": read_tensorflow, "rosinality": read_rosinality, "mmagic": read_mmagic}
    for layout, read in layouts.items():
        try:
            generator = read(value)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
            raise CheckpointDamaged(f"{path.name} looks like a {layout} checkpoint but is not whole: {error}") from error
        if generator is not None:
            return generator
    raise CheckpointUnsupported(f"{path.name} holds no StyleGAN2 generator in a layout that is known")


def read_nvidia(value: Any) -> ImportedGenerator | None:
    """Read a dictionary with the module G_ema and perhaps the discriminator D, or a generator's module alone.

    Returns:
        None if the value has another layout.
    """
    module = value.get("G_ema") if isinstance(value, dict) else value
    if not isinstance(module, PickledObject) or "_modules" not in module.state:
        return None
    tensors, settings = flatten_module(module)
    if any(name.startswith("synthesis.input.") or re.match(r"synthesis\.L\d+_", name) for name in tensors):
        raise CheckpointUnsupported("the file holds a StyleGAN3 (alias-free) generator; only StyleGAN2 is computed here")
    return ImportedGenerator(
        layout="nvidia",
        tensors=tensors,
        conv_clamp=shared_setting("conv_clamp", settings, None),
        architecture=shared_setting("architecture", settings, "skip"),
        discriminator=read_nvidia_discriminator(value.get("D") if isinstance(value, dict) else None),
    )


def read_nvidia_discriminator(module: Any) -> ImportedDiscriminator | None:
    """Read the module D.

    Returns:
        None if it is missing, or not computed by this engine: conditional, or of another architecture.
    """
    if not isinstance(module, PickledObject) or "_modules" not in module.state:
        return None
    tensors, settings = flatten_module(module)
    if settings.get("c_dim", 0) != 0 or shared_setting("architecture", settings, "resnet") != "resnet":
        return None
    return ImportedDiscriminator(tensors=tensors, conv_clamp=shared_setting("conv_clamp", settings, None))


def shared_setting(name: str, settings: dict[str, Any], default: Any) -> Any:
    """Return the value of a setting that all layers share; residual branches, which never clamp, are not looked at.

    Args:
        default: for a network without the setting.

    Raises:
        CheckpointUnsupported: layers differ.
    """
    values = {value for setting, value in settings.items() if setting.endswith(f".{name}") and ".skip." not in setting}
    values = values or {default}
    if len(values) > 1:
        raise CheckpointUnsupported(f"the network's layers differ in {name}: {sorted(map(str, values))}")
    return values.pop()


def flatten_module(module: PickledObject, prefix: str = "") -> tuple[Tensors, dict[str, Any]]:
    """Return all arrays, and all attributes that are plain values, of a module and its submodules by dotted name."""
    state = module.state
    arrays = {**state.get("_parameters", {}), **state.get("_buffers", {})}
    tensors = {
        prefix + name: array
        for name, array in arrays.items()
        if isinstance(array, np.ndarray) and name != "resample_filter"  # always the same one
    }
    settings = {prefix + name: value for name, value in state.items() if isinstance(value, (str, int, float, type(None)))}
    for name, child in state.get("_modules", {}).items():
        if isinstance(child, PickledObject):
            child_tensors, child_settings = flatten_module(child, f"{prefix}{name}.")
            tensors |= child_tensors
            settings |= child_settings
    return tensors, settings


def read_tensorflow(value: Any) -> ImportedGenerator | None:
    """Read a tuple (G, D, Gs) of networks, of which Gs is the averaged generator.

    Returns:
        None if the value has another layout.
    """
    if not (isinstance(value, tuple) and len(value) == 3 and isinstance(value[2], PickledObject)):
        return None
    if value[2].class_name != "Network":
        return None
    state = value[2].state
    settings = state["static_kwargs"]
    variables = dict(state["variables"])
    for part in ("mapping", "synthesis"):
        variables |= {f"{part}/{name}": array for name, array in state["components"][part].state["variables"]}
        settings = settings | state["components"][part].state["static_kwargs"]
    if "synthesis/4x4/Const/const" not in variables or "synthesis/4x4/Conv/mod_weight" not in variables:
        raise CheckpointUnsupported("the file holds a TensorFlow network that is no StyleGAN2 generator (StyleGAN1?)")
    if settings.get("label_size", 0) and "mapping/LabelConcat/weight" in variables:
        raise CheckpointUnsupported(
            "the file holds a conditional generator in TensorFlow's first form, whose labels are not normalized"
        )
    tensors: Tensors = {}
    for name, array in variables.items():
        if isinstance(array, np.ndarray) and (converted := convert_tensorflow_variable(name, array)):
            canonical_name, tensor = converted
            tensors[canonical_name] = tensor
    return ImportedGenerator(
        layout="tensorflow",
        tensors=tensors,
        conv_clamp=settings.get("conv_clamp"),
        architecture=settings.get("architecture", "skip"),
    )


def convert_tensorflow_variable(name: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    """Return the canonical name of a TensorFlow variable and its array with the axes in our order; None if unused."""
    if name == "dlatent_avg":
        return "mapping.w_avg", array
    if match := re.fullmatch(r"mapping/Dense(\d+)/(weight|bias)", name):
        return f"mapping.fc{match[1]}.{match[2]}", array.T
    if match := re.fullmatch(r"mapping/LabelEmbed/(weight|bias)", name):
        return f"mapping.embed.{match[1]}", array.T
    if name == "synthesis/4x4/Const/const":
        return "synthesis.b4.const", array[0]
    if match := re.fullmatch(r"synthesis/noise(\d+)", name):
        return f"synthesis.{layer_name(int(match[1]))}.noise_const", array[0, 0]
    match = re.fullmatch(r"synthesis/(\d+)x\1/(Conv|Conv0_up|Conv1|ToRGB|Skip)/(\w+)", name)
    if match is None:
        return None
    layer = {"Conv": "conv1", "Conv0_up": "conv0", "Conv1": "conv1", "ToRGB": "torgb", "Skip": "skip"}[match[2]]
    prefix = f"synthesis.b{match[1]}.{layer}"
    if match[3] == "weight":
        oriented = array[::-1, ::-1] if layer in ("conv0", "skip") else array
        return f"{prefix}.weight", oriented.transpose(3, 2, 0, 1)
    if match[3] == "mod_weight":
        return f"{prefix}.affine.weight", array.T
    if match[3] == "mod_bias":
        return f"{prefix}.affine.bias", array + 1  # stored as the offset from 1
    return (f"{prefix}.{match[3]}", array) if match[3] in ("bias", "noise_strength") else None


def read_rosinality(value: Any) -> ImportedGenerator | None:
    """Read a dictionary with the state dict g_ema, or pSp's state dict with the prefix decoder.

    Returns:
        None if the value has another layout.
    """
    if not isinstance(value, dict):
        return None
    state = value.get("g_ema")
    if state is None and isinstance(value.get("state_dict"), dict):
        state = {key.removeprefix("decoder."): a for key, a in value["state_dict"].items() if key.startswith("decoder.")}
    if not state or "input.input" not in state:
        return None
    names = {"conv.weight": "weight", "noise.weight": "noise_strength", "activate.bias": "bias", "bias": "bias"}
    names |= {"conv.modulation.weight": "affine.weight", "conv.modulation.bias": "affine.bias"}
    tensors = {"synthesis.b4.const": state["input.input"][0]}
    for key, array in state.items():
        if match := re.fullmatch(r"style\.(\d+)\.(weight|bias)", key):
            tensors[f"mapping.fc{int(match[1]) - 1}.{match[2]}"] = array
        elif match := re.fullmatch(r"noises\.noise_(\d+)", key):
            tensors[f"synthesis.{layer_name(int(match[1]))}.noise_const"] = array[0, 0]
        elif renamed := rename_sequential_layer(key, names):
            tensors[renamed] = array
    if isinstance(value.get("latent_avg"), np.ndarray):
        average = value["latent_avg"]
        tensors["mapping.w_avg"] = average if average.ndim == 1 else average[0]
    return ImportedGenerator(layout="rosinality", tensors=tensors, conv_clamp=None)


def read_mmagic(value: Any) -> ImportedGenerator | None:
    """Read a dictionary with a state dict whose generator has the prefix generator_ema or generator.

    Returns:
        None if the value has another layout.
    """
    state = value.get("state_dict") if isinstance(value, dict) else None
    if not isinstance(state, dict):
        return None
    for prefix in ("generator_ema.module.", "generator_ema.", "generator."):
        generator = {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
        if "constant_input.input" in generator:
            break
    else:
        return None
    names = {"conv.weight_orig": "weight", "noise_injector.weight": "noise_strength", "activate.bias": "bias", "bias": "bias"}
    names |= {"conv.style_modulation.linear.weight_orig": "affine.weight", "conv.style_modulation.bias": "affine.bias"}
    tensors = {"synthesis.b4.const": generator["constant_input.input"][0]}
    for key, array in generator.items():
        if match := re.fullmatch(r"style_mapping\.(\d+)\.(linear\.weight_orig|bias)", key):
            tensors[f"mapping.fc{int(match[1]) - 1}.{'weight' if 'weight' in match[2] else 'bias'}"] = array
        elif match := re.fullmatch(r"injected_noise_(\d+)", key):
            tensors[f"synthesis.{layer_name(int(match[1]))}.noise_const"] = array[0, 0]
        elif key == "w_avg":
            tensors["mapping.w_avg"] = array
        elif renamed := rename_sequential_layer(key, names):
            tensors[renamed] = array
    return ImportedGenerator(layout="mmagic", tensors=tensors, conv_clamp=None)


def rename_sequential_layer(key: str, names: dict[str, str]) -> str | None:
    """Rename conv1.X, convs.N.X, to_rgb1.X and to_rgbs.N.X to names such as synthesis.b8.conv0.X; return None for other keys.

    Args:
        names: X' by X.
    """
    match = re.fullmatch(r"(conv1|to_rgb1|convs\.(\d+)|to_rgbs\.(\d+))\.(.+)", key)
    if match is None or match[4] not in names:
        return None
    if match[1].startswith("to_rgb"):
        index = 0 if match[3] is None else int(match[3]) + 1
        return f"synthesis.b{4 * 2**index}.torgb.{names[match[4]]}"
    index = 0 if match[2] is None else int(match[2]) + 1
    return f"synthesis.{layer_name(index)}.{names[match[4]]}"


def layer_name(index: int) -> str:
    """Return the name of a convolution by its index: b4.conv1, b8.conv0, b8.conv1, b16.conv0 ..."""
    return f"b{2 ** ((index + 1) // 2 + 2)}.conv{(index + 1) % 2}"
