"""Small generators for tests: seeded random weights, and the reference checkpoint with its images."""

import re
from pathlib import Path

import torch
from torch import Tensor

from engine.networks.config import GeneratorConfig
from engine.networks.stylegan2 import Generator, channels_last

DATA = Path(__file__).parent / "data"
REFERENCE_CONFIG = GeneratorConfig(resolution=64, z_dim=64, w_dim=64, mapping_layers=4, channel_base=2048, channel_max=32)


def tiny_generator(resolution: int = 32) -> Generator:
    """Make a frozen generator with random weights, noise included."""
    return random_generator(
        GeneratorConfig(resolution=resolution, z_dim=16, w_dim=16, mapping_layers=2, channel_base=512, channel_max=16)
    )


def slow_generator() -> Generator:
    """Make a generator whose drags take some seconds, so that something can happen meanwhile."""
    return random_generator(
        GeneratorConfig(resolution=256, z_dim=16, w_dim=16, mapping_layers=2, channel_base=8192, channel_max=64)
    )


def random_generator(config: GeneratorConfig) -> Generator:
    """Make a frozen generator with the same random weights each time."""
    torch.manual_seed(0)
    generator = Generator(config)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.data.fill_(0.1)
    return channels_last(generator.eval().requires_grad_(False))


def reference_generator() -> Generator:
    """Load the reference checkpoint, its keys renamed from rosinality's to ours."""
    checkpoint = torch.load(DATA / "sg2-64-rosinality.pt", weights_only=True)
    tensors = {"mapping.w_avg": checkpoint["latent_avg"]}
    for key, tensor in checkpoint["g_ema"].items():
        if not key.endswith("kernel"):  # the resampling filter, which we make ourselves
            tensors[renamed(key)] = tensor
    generator = Generator(REFERENCE_CONFIG)
    shapes = generator.state_dict()
    tensors = {key: tensor.reshape(shapes[key].shape) for key, tensor in tensors.items()}
    missing, unexpected = generator.load_state_dict(tensors, strict=False)
    assert unexpected == []
    assert all(key.endswith("resample_filter") for key in missing)
    return generator.eval().requires_grad_(False)


def renamed(key: str) -> str:
    """Return our name of a tensor of rosinality's."""
    if match := re.fullmatch(r"style\.(\d+)\.(weight|bias)", key):
        return f"mapping.fc{int(match[1]) - 1}.{match[2]}"
    if key == "input.input":
        return "synthesis.b4.const"
    if match := re.fullmatch(r"noises\.noise_(\d+)", key):
        return f"synthesis.{layer_name(int(match[1]))}.noise_const"
    layer, rest = re.fullmatch(r"(conv1|to_rgb1|convs\.\d+|to_rgbs\.\d+)\.(.+)", key).groups()
    names = {"conv.weight": "weight", "noise.weight": "noise_strength", "activate.bias": "bias"}
    rest = names.get(rest, rest.replace("conv.modulation", "affine"))
    if layer.startswith("to_rgb"):
        index = 0 if layer == "to_rgb1" else int(layer.split(".")[1]) + 1
        return f"synthesis.b{4 * 2**index}.torgb.{rest}"
    return f"synthesis.{layer_name(0 if layer == 'conv1' else int(layer.split('.')[1]) + 1)}.{rest}"


def layer_name(index: int) -> str:
    """Return the name of a layer by its number: 0 is b4.conv1, 1 is b8.conv0, 2 is b8.conv1."""
    return f"b{2 ** ((index + 1) // 2 + 2)}.conv{(index + 1) % 2}"


def some_w(generator: Generator, seed: int = 1) -> Tensor:
    """Return the w+ of a seed, untruncated."""
    return generator.map(seed=seed, truncation_psi=1.0)
