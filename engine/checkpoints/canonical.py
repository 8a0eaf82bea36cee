"""Writing imported networks as the checkpoints that the service reads. This module needs no torch."""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import cast

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from engine.atomic_write import atomic_write
from engine.checkpoints.budget import ReadingBudget
from engine.checkpoints.layouts import BLOCKS, ImportedDiscriminator, ImportedGenerator, Tensors
from engine.checkpoints.values import expect_tensor
from engine.errors import CheckpointDamaged, CheckpointUnsupported
from engine.networks.config import W_SAMPLES, W_SEED, Architecture, DiscriminatorConfig, EncoderConfig, GeneratorConfig, Pyramid
from engine.printable import quote

Shapes = Iterator[tuple[str, tuple[int, ...]]]


def write_networks(
    imported: ImportedGenerator, generator_path: Path, discriminator_path: Path, *, bgr: bool = False
) -> GeneratorConfig:
    """Write the generator, and its discriminator if there is one; both are checked before either is written.

    Raises:
        CheckpointDamaged, CheckpointUnsupported: as write_generator.
        OSError: a file cannot be written; neither is left.
    """
    try:
        discriminator = None if imported.discriminator is None else convert_discriminator(imported.discriminator)
        config = write_generator(imported, generator_path, bgr=bgr)
    except MemoryError as error:
        raise CheckpointDamaged("converting the network takes more memory than it may") from error
    try:
        if discriminator is not None:
            write_checkpoint(discriminator_path, *discriminator)
    except OSError:
        generator_path.unlink()
        raise
    return config


def write_generator(imported: ImportedGenerator, path: Path, *, bgr: bool = False) -> GeneratorConfig:
    """Write tensors and config; the file appears whole or not at all.

    Args:
        bgr: whether the generator's images are blue first, as some of mmagic's are; they become red first.

    Raises:
        CheckpointDamaged: a tensor is missing, has a shape that does not fit the others, or is not finite.
        CheckpointUnsupported: the images are not square.
        OSError: the file cannot be written.
    """
    config = infer_generator_config(imported)
    spend_on_writing(imported.budget, generator_shapes(config))
    tensors = dict(select_tensors(imported.tensors, generator_shapes(config)))
    if "mapping.w_avg" not in imported.tensors:
        tensors["mapping.w_avg"] = compute_w_avg(tensors, config, imported.budget)
    if bgr:
        for name in [name for name in tensors if re.search(r"torgb\.(weight|bias)$", name)]:
            tensors[name] = np.ascontiguousarray(tensors[name][::-1])
    write_checkpoint(path, tensors, config)
    return config


def write_discriminator(imported: ImportedDiscriminator, path: Path) -> None:
    """Write tensors and config; the file appears whole or not at all.

    Raises:
        CheckpointDamaged: a tensor is missing, has a shape that does not fit the others, or is not finite.
        OSError: the file cannot be written.
    """
    write_checkpoint(path, *convert_discriminator(imported))


def convert_discriminator(imported: ImportedDiscriminator) -> tuple[Tensors, DiscriminatorConfig]:
    """Return the canonical tensors and the config of a discriminator.

    Raises:
        CheckpointDamaged: a tensor is missing, has a shape that does not fit the others, or is not finite.
    """
    config = infer_discriminator_config(imported)
    spend_on_writing(imported.budget, discriminator_shapes(config))
    return dict(select_tensors(imported.tensors, discriminator_shapes(config))), config


def write_checkpoint(path: Path, tensors: Tensors, config: Pyramid) -> None:
    """Write a safetensors file with the config as JSON in its metadata.

    Raises:
        OSError: the file cannot be written; nothing is left of it.
    """
    try:
        with atomic_write(path) as part:
            save_file(tensors, part, metadata={"config": json.dumps(asdict(config))})
            part.chmod(0o644)  # safetensors writes for its owner alone
    except (OSError, SafetensorError) as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def infer_generator_config(imported: ImportedGenerator) -> GeneratorConfig:
    """Infer the config of a generator from the shapes of its tensors.

    Raises:
        CheckpointDamaged: the shapes fit no generator.
        CheckpointUnsupported: the images are not square.
    """
    const = imported.tensors.get("synthesis.b4.const")
    if const is not None and len(set(expect_tensor("synthesis.b4.const", const, axes=3).shape[1:])) > 1:
        raise CheckpointUnsupported(
            "the generator's pictures are not square (StyleGAN-Human?); only square ones are computed here"
        )
    channels = block_channels(imported.tensors, r"synthesis\.b(\d+)\.conv1\.weight")
    layers = [name for name in imported.tensors if re.fullmatch(r"mapping\.fc\d+\.weight", name)]
    if not channels or not layers:
        raise CheckpointDamaged("the generator has no synthesis or no mapping layers")
    try:
        first = expect_tensor("mapping.fc0.weight", imported.tensors["mapping.fc0.weight"], axes=2)
        labels = imported.tensors.get("mapping.embed.weight")
        if labels is not None:
            expect_tensor("mapping.embed.weight", labels, axes=2)
        config = GeneratorConfig(
            **infer_pyramid(channels),
            z_dim=first.shape[1] - (first.shape[0] if labels is not None else 0),
            w_dim=first.shape[0],
            c_dim=0 if labels is None else labels.shape[1],
            architecture=cast(Architecture, imported.architecture),
            mapping_layers=len(layers),
            conv_clamp=imported.conv_clamp,
        )
    except (ValueError, KeyError) as error:
        raise CheckpointDamaged(f"the generator's shape is impossible: {error}") from error
    check_channels("generator", channels, config)
    return config


def infer_discriminator_config(imported: ImportedDiscriminator) -> DiscriminatorConfig:
    """Infer the config of a discriminator from the shapes of its tensors.

    Raises:
        CheckpointDamaged: the shapes fit no discriminator.
    """
    channels = block_channels(imported.tensors, r"b(\d+)\.conv0\.weight")
    channels |= block_channels(imported.tensors, r"b(4)\.conv\.weight")
    try:
        config = DiscriminatorConfig(**infer_pyramid(channels), conv_clamp=imported.conv_clamp)
    except ValueError as error:
        raise CheckpointDamaged(f"the discriminator's shape is impossible: {error}") from error
    check_channels("discriminator", channels, config)
    return config


def check_channels(network: str, channels: dict[int, int], config: Pyramid) -> None:
    """Raise CheckpointDamaged unless the channels by resolution are those of the config."""
    if channels != {r: config.channels(r) for r in config.block_resolutions}:
        raise CheckpointDamaged(f"the {network}'s channels {channels} follow no rule that is known")


def block_channels(tensors: Tensors, pattern: str) -> dict[int, int]:
    """Return the output channels of the matching convolutions by the resolution of their block.

    Args:
        pattern: a regular expression for names; its first group is the resolution.
    """
    known = {str(resolution) for resolution in BLOCKS}
    channels = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(pattern, name):
            if match[1] not in known or tensor.ndim not in (4, 5):
                raise CheckpointDamaged(f"{quote(name)} is no convolution of a network of at most {BLOCKS[-1]} px")
            channels[int(match[1])] = tensor.shape[-4]
    return channels


def infer_pyramid(channels: dict[int, int]) -> dict[str, int]:
    """Return the arguments of the Pyramid whose blocks have these channels by resolution."""
    resolution, channel_max = max(channels, default=0), channels.get(4, 0)
    below_max = [count * r for r, count in channels.items() if count < channel_max]
    base = max(below_max, default=channel_max * resolution)
    return {"resolution": resolution, "channel_base": base, "channel_max": channel_max}


def spend_on_writing(budget: ReadingBudget, shapes: Shapes) -> None:
    """Take off what tensors of these shapes have in bytes, before any is made."""
    budget.spend_bytes(sum(4 * math.prod(shape) for _, shape in shapes))


def select_tensors(tensors: Tensors, shapes: Shapes) -> Iterator[tuple[str, np.ndarray]]:
    """Yield every tensor of a network by name, in its shape and in float32; mapping.w_avg may be missing.

    Args:
        shapes: name and shape of each tensor.

    Raises:
        CheckpointDamaged: a tensor is missing, has another shape, or is not finite.
    """
    line = np.array([1, 3, 3, 1], dtype=np.float32) / 8
    for name, shape in shapes:
        if name.endswith("resample_filter"):
            yield name, np.outer(line, line)
        elif name in tensors:
            yield name, conform(name, tensors[name], shape)
        elif name != "mapping.w_avg":
            raise CheckpointDamaged(f"the network lacks {name}")


def conform(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a tensor in float32 and in the expected shape, from which it may differ by axes of length 1.

    Raises:
        CheckpointDamaged: it has another shape, or is not finite.
    """
    if tuple(n for n in tensor.shape if n != 1) != tuple(n for n in shape if n != 1):
        raise CheckpointDamaged(f"{name} has the shape {list(tensor.shape)}, expected {list(shape)}")
    with np.errstate(over="ignore"):  # what float32 has no number for is not finite
        conformed = np.ascontiguousarray(tensor, dtype=np.float32).reshape(shape)
    if not np.isfinite(conformed).all():
        raise CheckpointDamaged(f"{name} holds numbers that are not finite")
    return conformed


def generator_shapes(config: GeneratorConfig) -> Shapes:
    """Yield name and shape of every tensor of engine.networks.stylegan2.Generator."""
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


def discriminator_shapes(config: DiscriminatorConfig) -> Shapes:
    """Yield name and shape of every tensor of engine.networks.discriminator.Discriminator."""
    for r in config.block_resolutions[1:]:
        inputs, outputs = config.channels(r), config.channels(r // 2)
        if r == config.resolution:
            yield f"b{r}.fromrgb.weight", (inputs, 3, 1, 1)
            yield f"b{r}.fromrgb.bias", (inputs,)
        yield f"b{r}.conv0.weight", (inputs, inputs, 3, 3)
        yield f"b{r}.conv0.bias", (inputs,)
        yield f"b{r}.conv1.weight", (outputs, inputs, 3, 3)
        yield f"b{r}.conv1.bias", (outputs,)
        yield f"b{r}.conv1.resample_filter", (4, 4)
        yield f"b{r}.skip.weight", (outputs, inputs, 1, 1)
        yield f"b{r}.skip.resample_filter", (4, 4)
    last = config.channels(4)
    yield "b4.conv.weight", (last, last + 1, 3, 3)
    yield "b4.conv.bias", (last,)
    yield "b4.fc.weight", (last, 16 * last)
    yield "b4.fc.bias", (last,)
    yield "b4.out.weight", (1, last)
    yield "b4.out.bias", (1,)


def encoder_shapes(config: EncoderConfig) -> Shapes:
    """Yield name and shape of every tensor of engine.networks.encoder.Encoder."""
    for i, (inputs, outputs) in enumerate(pairwise((3, *config.widths))):
        block = "stem" if i == 0 else f"down.{i - 1}"
        for layer, fine in (("conv0", inputs), ("conv1", outputs)):
            yield f"{block}.{layer}.weight", (outputs, fine, 3, 3)
            yield f"{block}.{layer}.bias", (outputs,)
        yield f"{block}.norm.weight", (outputs,)
        yield f"{block}.norm.bias", (outputs,)
    cells = config.resolution // 2 ** len(config.widths)
    yield "hidden.weight", (config.hidden, config.widths[-1] * cells**2)
    yield "hidden.bias", (config.hidden,)
    yield "head.weight", (config.w_dim, config.hidden)
    yield "head.bias", (config.w_dim,)
    yield "w_avg", (config.w_dim,)
    yield "w_std", ()


def layer_shapes(name: str, inputs: int, outputs: int, resolution: int, w: int) -> Shapes:
    """Yield name and shape of every tensor of a SynthesisLayer, without the resampling filter."""
    yield f"{name}.affine.weight", (inputs, w)
    yield f"{name}.affine.bias", (inputs,)
    yield f"{name}.weight", (outputs, inputs, 3, 3)
    yield f"{name}.bias", (outputs,)
    yield f"{name}.noise_strength", ()
    yield f"{name}.noise_const", (resolution, resolution)


def compute_w_avg(tensors: Tensors, config: GeneratorConfig, budget: ReadingBudget) -> np.ndarray:
    """Return the mean of w [D] over samples of z (and of classes) of a fixed seed, for files that do not store it.

    Raises:
        CheckpointDamaged: the mapping network is too large for that, or its w is not finite.
    """
    weights = [tensors[f"mapping.fc{i}.weight"] for i in range(config.mapping_layers)]
    budget.spend_multiplications(W_SAMPLES * sum(weight.size for weight in weights))
    random = np.random.RandomState(W_SEED)
    with np.errstate(over="ignore", invalid="ignore"):
        x = normalize(random.randn(W_SAMPLES, config.z_dim))
        if config.c_dim > 0:
            classes = random.randint(config.c_dim, size=W_SAMPLES)
            embedded = (tensors["mapping.embed.weight"].T / np.sqrt(config.c_dim))[classes] + tensors["mapping.embed.bias"]
            x = np.concatenate([x, normalize(embedded)], axis=1)
        for i, weight in enumerate(weights):
            x = x @ (weight.T * (0.01 / np.sqrt(weight.shape[1]))) + 0.01 * tensors[f"mapping.fc{i}.bias"]
            x = np.where(x > 0, x, 0.2 * x) * np.sqrt(2)
        average = np.asarray(x.mean(axis=0), dtype=np.float32)
    if not np.isfinite(average).all():
        raise CheckpointDamaged("the mean of w is not finite")
    return average


def normalize(x: np.ndarray) -> np.ndarray:
    """Scale each row of x [B, D] to a mean square of 1."""
    return np.asarray(x / np.sqrt(np.square(x).mean(axis=1, keepdims=True) + 1e-8))
