"""The layouts in which StyleGAN2 generators are found, all renamed to one: NVIDIA's names, float32 numpy arrays.

Recognized by content: NVIDIA's persistent pickles (and a bare generator that torch.save wrote), legacy TensorFlow
pickles, rosinality's and pSp's .pt files, mmagic's and mmgeneration's .pth files. Works without torch.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.checkpoints.torch_files import Module, read_checkpoint_file
from engine.errors import CheckpointDamaged, CheckpointUnsupported

Tensors = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FoundDiscriminator:
    """The discriminator that stood beside it: residual architecture, without classes."""

    tensors: Tensors  # by canonical name, without the resampling filters
    conv_clamp: float | None


@dataclass(frozen=True, kw_only=True)
class FoundGenerator:
    """A generator as it was found."""

    layout: str  # nvidia, tensorflow, rosinality or mmagic
    tensors: Tensors  # by canonical name, without the resampling filters
    conv_clamp: float | None
    architecture: str = "skip"
    discriminator: FoundDiscriminator | None = None


def read_generator_file(path: Path) -> FoundGenerator:
    """Recognize the layout of a checkpoint file and rename its generator's tensors.

    Raises:
        CheckpointDamaged: it cannot be read.
        CheckpointUnsupported: it holds something else than a StyleGAN2 generator that this engine computes.
    """
    value = read_checkpoint_file(path)
    try:
        for recognize in (nvidia, tensorflow, rosinality, mmagic):
            if found := recognize(value):
                return found
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise CheckpointDamaged(f"{path.name} looks like a {recognize.__name__} checkpoint but is not whole: {error}") from error
    raise CheckpointUnsupported(f"{path.name} holds no StyleGAN2 generator in a layout that is known")


def nvidia(value: Any) -> FoundGenerator | None:
    """A dictionary with the module G_ema and perhaps the discriminator D, or a generator's module alone."""
    module = value.get("G_ema") if isinstance(value, dict) else value
    if not isinstance(module, Module) or "_modules" not in module.state:
        return None
    tensors, settings = flatten(module)
    if any(name.startswith("synthesis.input.") or re.match(r"synthesis\.L\d+_", name) for name in tensors):
        raise CheckpointUnsupported("the file holds a StyleGAN3 (alias-free) generator; only StyleGAN2 is computed here")
    return FoundGenerator(
        layout="nvidia",
        tensors=tensors,
        conv_clamp=the_only("conv_clamp", settings, None),
        architecture=the_only("architecture", settings, "skip"),
        discriminator=nvidia_discriminator(value.get("D") if isinstance(value, dict) else None),
    )


def nvidia_discriminator(module: Any) -> FoundDiscriminator | None:
    """None too for one that our discriminator does not compute: conditional, or of another architecture."""
    if not isinstance(module, Module) or "_modules" not in module.state:
        return None
    tensors, settings = flatten(module)
    if settings.get("c_dim", 0) != 0 or the_only("architecture", settings, "resnet") != "resnet":
        return None
    return FoundDiscriminator(tensors=tensors, conv_clamp=the_only("conv_clamp", settings, None))


def the_only(name: str, settings: dict[str, Any], default: Any) -> Any:
    """The value that all layers share; residual branches neither clamp nor count."""
    values = {value for setting, value in settings.items() if setting.endswith(f".{name}") and ".skip." not in setting}
    values = values or {default}
    if len(values) > 1:
        raise CheckpointUnsupported(f"the network's layers differ in {name}: {sorted(map(str, values))}")
    return values.pop()


def flatten(module: Module, prefix: str = "") -> tuple[Tensors, dict[str, Any]]:
    """All arrays and all plain attributes of a module and those in it, by dotted name."""
    state = module.state
    held = {**state.get("_parameters", {}), **state.get("_buffers", {})}
    tensors = {
        prefix + name: array
        for name, array in held.items()
        if isinstance(array, np.ndarray) and name != "resample_filter"  # always the same one
    }
    settings = {prefix + name: value for name, value in state.items() if isinstance(value, (str, int, float, type(None)))}
    for name, child in state.get("_modules", {}).items():
        if isinstance(child, Module):
            below = flatten(child, f"{prefix}{name}.")
            tensors |= below[0]
            settings |= below[1]
    return tensors, settings


def tensorflow(value: Any) -> FoundGenerator | None:
    """A tuple (G, D, Gs) of networks; Gs is the averaged generator."""
    if not (isinstance(value, tuple) and len(value) == 3 and isinstance(value[2], Module) and value[2].class_name == "Network"):
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
        if isinstance(array, np.ndarray) and (renamed := tensorflow_tensor(name, array)):
            tensors[renamed[0]] = renamed[1]
    architecture = settings.get("architecture", "skip")
    return FoundGenerator(layout="tensorflow", tensors=tensors, conv_clamp=settings.get("conv_clamp"), architecture=architecture)


def tensorflow_tensor(name: str, array: np.ndarray) -> tuple[str, np.ndarray] | None:
    """The canonical name and orientation of one TensorFlow variable; None for what we do not need."""
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


def rosinality(value: Any) -> FoundGenerator | None:
    """A dictionary with the state dict g_ema, or pSp's with the prefix decoder."""
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
        elif renamed := sequential_layer(key, names):
            tensors[renamed] = array
    if isinstance(value.get("latent_avg"), np.ndarray):
        average = value["latent_avg"]
        tensors["mapping.w_avg"] = average if average.ndim == 1 else average[0]
    return FoundGenerator(layout="rosinality", tensors=tensors, conv_clamp=None)


def mmagic(value: Any) -> FoundGenerator | None:
    """A dictionary with a state dict whose generator has the prefix generator_ema or generator."""
    state = value.get("state_dict") if isinstance(value, dict) else None
    if not isinstance(state, dict):
        return None
    for prefix in ("generator_ema.module.", "generator_ema.", "generator."):
        inside = {key.removeprefix(prefix): array for key, array in state.items() if key.startswith(prefix)}
        if "constant_input.input" in inside:
            break
    else:
        return None
    names = {"conv.weight_orig": "weight", "noise_injector.weight": "noise_strength", "activate.bias": "bias", "bias": "bias"}
    names |= {"conv.style_modulation.linear.weight_orig": "affine.weight", "conv.style_modulation.bias": "affine.bias"}
    tensors = {"synthesis.b4.const": inside["constant_input.input"][0]}
    for key, array in inside.items():
        if match := re.fullmatch(r"style_mapping\.(\d+)\.(linear\.weight_orig|bias)", key):
            tensors[f"mapping.fc{int(match[1]) - 1}.{'weight' if 'weight' in match[2] else 'bias'}"] = array
        elif match := re.fullmatch(r"injected_noise_(\d+)", key):
            tensors[f"synthesis.{layer_name(int(match[1]))}.noise_const"] = array[0, 0]
        elif key == "w_avg":
            tensors["mapping.w_avg"] = array
        elif renamed := sequential_layer(key, names):
            tensors[renamed] = array
    return FoundGenerator(layout="mmagic", tensors=tensors, conv_clamp=None)


def sequential_layer(key: str, names: dict[str, str]) -> str | None:
    """conv1.X, convs.N.X, to_rgb1.X and to_rgbs.N.X -> synthesis.b8.conv0.X'."""
    match = re.fullmatch(r"(conv1|to_rgb1|convs\.(\d+)|to_rgbs\.(\d+))\.(.+)", key)
    if match is None or match[4] not in names:
        return None
    if match[1].startswith("to_rgb"):
        index = 0 if match[3] is None else int(match[3]) + 1
        return f"synthesis.b{4 * 2**index}.torgb.{names[match[4]]}"
    index = 0 if match[2] is None else int(match[2]) + 1
    return f"synthesis.{layer_name(index)}.{names[match[4]]}"


def layer_name(index: int) -> str:
    """0 -> b4.conv1, 1 -> b8.conv0, 2 -> b8.conv1, 3 -> b16.conv0 ..."""
    return f"b{2 ** ((index + 1) // 2 + 2)}.conv{(index + 1) % 2}"
