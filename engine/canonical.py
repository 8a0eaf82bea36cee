"""From a generator as it was found to the one file that the service reads. Works without torch."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
from safetensors.numpy import save_file

from engine.config import Architecture, GeneratorConfig
from engine.errors import CheckpointDamaged
from engine.layouts import FoundGenerator, Tensors

W_AVG_SAMPLES = 10_000
W_AVG_SEED = 123
MAX_WIDTH = 4096
MAX_MAPPING_LAYERS = 64


def write_canonical(found: FoundGenerator, path: Path, *, bgr: bool = False) -> GeneratorConfig:
    """Write tensors and config; the file appears whole or not at all.

    Args:
        bgr: the generator's images are blue first, as some of mmagic's are; they become red first.

    Raises:
        CheckpointDamaged: a tensor is missing, has a shape that does not fit the others, or is not finite.
    """
    config = infer_config(found)
    tensors = dict(canonical_tensors(found.tensors, config))
    if "mapping.w_avg" not in found.tensors:
        tensors["mapping.w_avg"] = mean_w(tensors, config)
    if bgr:
        for name in [name for name in tensors if re.search(r"torgb\.(weight|bias)$", name)]:
            tensors[name] = np.ascontiguousarray(tensors[name][::-1])
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata={"config": json.dumps(asdict(config))})
    part.chmod(0o644)  # safetensors writes for its owner alone
    part.rename(path)
    return config


def infer_config(found: FoundGenerator) -> GeneratorConfig:
    """The shape of the generator from its tensors alone."""
    channels = {}
    for name, tensor in found.tensors.items():
        if match := re.fullmatch(r"synthesis\.b(\d+)\.conv1\.weight", name):
            channels[int(match[1])] = tensor.shape[-4]
    layers = [name for name in found.tensors if re.fullmatch(r"mapping\.fc\d+\.weight", name)]
    if not channels or not layers:
        raise CheckpointDamaged("the generator has no synthesis or no mapping layers")
    if max(channels.values()) > MAX_WIDTH or len(layers) > MAX_MAPPING_LAYERS:
        raise CheckpointDamaged(f"the generator is larger than any that is known: {channels}, {len(layers)} mapping layers")
    resolution, channel_max = max(channels), channels.get(4, 0)
    narrow = [width * r for r, width in channels.items() if width < channel_max]
    try:
        first, labels = found.tensors["mapping.fc0.weight"], found.tensors.get("mapping.embed.weight")
        config = GeneratorConfig(
            resolution=resolution,
            z_dim=first.shape[1] - (first.shape[0] if labels is not None else 0),
            w_dim=first.shape[0],
            c_dim=0 if labels is None else labels.shape[1],
            architecture=cast(Architecture, found.architecture),
            mapping_layers=len(layers),
            channel_base=max(narrow, default=channel_max * resolution),
            channel_max=channel_max,
            conv_clamp=found.conv_clamp,
        )
    except (ValueError, KeyError) as error:
        raise CheckpointDamaged(f"the generator's shape is impossible: {error}") from error
    if channels != {r: config.channels(r) for r in config.block_resolutions}:
        raise CheckpointDamaged(f"the generator's channels {channels} follow no rule that is known")
    return config


def canonical_tensors(tensors: Tensors, config: GeneratorConfig) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor that a generator of this config has, in its shape and in float32. Raises CheckpointDamaged."""
    line = np.array([1, 3, 3, 1], dtype=np.float32) / 8
    for name, shape in expected_shapes(config):
        if name.endswith("resample_filter"):
            yield name, np.outer(line, line)
        elif name in tensors:
            yield name, fit(name, tensors[name], shape)
        elif name != "mapping.w_avg":
            raise CheckpointDamaged(f"the generator lacks {name}")


def fit(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if tuple(n for n in tensor.shape if n != 1) != tuple(n for n in shape if n != 1):
        raise CheckpointDamaged(f"{name} has the shape {list(tensor.shape)}, expected {list(shape)}")
    fitted = np.ascontiguousarray(tensor, dtype=np.float32).reshape(shape)
    if not np.isfinite(fitted).all():
        raise CheckpointDamaged(f"{name} holds numbers that are not finite")
    return fitted


def expected_shapes(config: GeneratorConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as in engine.generator."""
    w = config.w_dim
    for i in range(config.mapping_layers):
        yield f"mapping.fc{i}.weight", (w, w if i > 0 else config.z_dim + (w if config.c_dim else 0))
        yield f"mapping.fc{i}.bias", (w,)
    if config.c_dim > 0:
        yield "mapping.embed.weight", (w, config.c_dim)
        yield "mapping.embed.bias", (w,)
    yield "mapping.w_avg", (w,)
    yield "synthesis.b4.const", (config.channels(4), 4, 4)
    for r in config.block_resolutions:
        out = config.channels(r)
        block = f"synthesis.b{r}"
        if r > 4:
            yield f"{block}.resample_filter", (4, 4)
            yield f"{block}.conv0.resample_filter", (4, 4)
            yield from layer_shapes(f"{block}.conv0", config.channels(r // 2), out, r, w)
        yield from layer_shapes(f"{block}.conv1", out, out, r, w)
        if config.has_skip(r):
            yield f"{block}.skip.weight", (out, config.channels(r // 2), 1, 1)
            yield f"{block}.skip.resample_filter", (4, 4)
        if config.has_rgb(r):
            yield f"{block}.torgb.affine.weight", (out, w)
            yield f"{block}.torgb.affine.bias", (out,)
            yield f"{block}.torgb.weight", (3, out, 1, 1)
            yield f"{block}.torgb.bias", (3,)


def layer_shapes(name: str, inputs: int, outputs: int, resolution: int, w: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.affine.weight", (inputs, w)
    yield f"{name}.affine.bias", (inputs,)
    yield f"{name}.weight", (outputs, inputs, 3, 3)
    yield f"{name}.bias", (outputs,)
    yield f"{name}.noise_strength", ()
    yield f"{name}.noise_const", (resolution, resolution)


def mean_w(tensors: Tensors, config: GeneratorConfig) -> np.ndarray:
    """The mean of w over z's (and classes) of a fixed seed, for files that do not store it."""
    random = np.random.RandomState(W_AVG_SEED)
    x = normalize(random.randn(W_AVG_SAMPLES, config.z_dim))
    if config.c_dim > 0:
        labels = np.eye(config.c_dim)[random.randint(config.c_dim, size=W_AVG_SAMPLES)]
        embedded = labels @ (tensors["mapping.embed.weight"].T / np.sqrt(config.c_dim)) + tensors["mapping.embed.bias"]
        x = np.concatenate([x, normalize(embedded)], axis=1)
    for i in range(config.mapping_layers):
        weight, bias = tensors[f"mapping.fc{i}.weight"], tensors[f"mapping.fc{i}.bias"]
        x = x @ (weight.T * (0.01 / np.sqrt(weight.shape[1]))) + 0.01 * bias
        x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
    return np.asarray(x.mean(axis=0), dtype=np.float32)


def normalize(x: np.ndarray) -> np.ndarray:
    """Scale each row to a mean square of 1."""
    return np.asarray(x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-8))
