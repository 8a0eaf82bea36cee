"""Networks of many shapes, written in each layout and read back: the same tensors, the same config."""

import pytest
import torch

from benchmarks.writers import WRITERS, nvidia
from engine.checkpoints.canonical import write_generator
from engine.checkpoints.layouts import read_generator_file
from engine.checkpoints.load import load_generator
from engine.networks.config import GeneratorConfig
from tests.generators import random_generator

PLAIN = {
    "narrow": GeneratorConfig(resolution=32, z_dim=16, w_dim=24, mapping_layers=2, channel_base=256, channel_max=16),
    "all one width": GeneratorConfig(resolution=64, z_dim=32, w_dim=16, mapping_layers=8, channel_base=4096, channel_max=8),
    "one wide block": GeneratorConfig(resolution=32, z_dim=8, w_dim=8, mapping_layers=1, channel_base=128, channel_max=32),
    "large": GeneratorConfig(resolution=256, z_dim=16, w_dim=16, mapping_layers=3, channel_base=512, channel_max=16),
}
CLAMPED = GeneratorConfig(resolution=64, z_dim=16, w_dim=16, mapping_layers=2, channel_base=512, channel_max=16, conv_clamp=256)
OTHERS = {
    "clamped": CLAMPED,
    "conditional": GeneratorConfig(
        resolution=32, z_dim=16, w_dim=24, mapping_layers=2, channel_base=512, channel_max=16, c_dim=10
    ),
    "residual": GeneratorConfig(
        resolution=64, z_dim=16, w_dim=16, mapping_layers=2, channel_base=512, channel_max=16, architecture="resnet",
        conv_clamp=256,
    ),
    "original": GeneratorConfig(
        resolution=64, z_dim=16, w_dim=16, mapping_layers=2, channel_base=512, channel_max=16, architecture="orig"
    ),
}  # fmt: skip
CASES = [(layout, name, config) for layout in WRITERS for name, config in PLAIN.items()]
CASES += [(layout, name, config) for layout in ("nvidia", "tensorflow") for name, config in OTHERS.items()]


def random_weights(config):
    """Everything random, the mean of w and the biases too."""
    generator = random_generator(config)
    for name, tensor in generator.state_dict().items():
        if not name.endswith("resample_filter"):
            tensor.copy_(torch.randn_like(tensor))
    return generator


@pytest.mark.parametrize(
    ("layout", "config"), [(layout, config) for layout, _, config in CASES], ids=[f"{a}-{b}" for a, b, _ in CASES]
)
def test_a_network_is_read_back_as_it_was(tmp_path, layout, config):
    generator = random_weights(config)
    WRITERS[layout](generator, tmp_path / "file")
    found = read_generator_file(tmp_path / "file")
    assert found.layout == layout
    assert equal_shapes(write_generator(found, tmp_path / "read.safetensors"), config)
    read = load_generator(tmp_path / "read.safetensors")
    for name, tensor in generator.state_dict().items():
        torch.testing.assert_close(read.state_dict()[name], tensor, atol=1e-6, rtol=0, msg=name)


def equal_shapes(found, config):
    """The config, but for a channel_base that makes no difference."""
    same = ("resolution", "z_dim", "w_dim", "mapping_layers", "channel_max", "conv_clamp", "c_dim", "architecture")
    widths = [[each.channels(r) for r in each.block_resolutions] for each in (found, config)]
    return widths[0] == widths[1] and all(getattr(found, name) == getattr(config, name) for name in same)


def test_blocks_in_half_precision_keep_their_weights(tmp_path):
    generator = random_weights(CLAMPED)
    nvidia(generator, tmp_path / "file", fp16_blocks=2)
    write_generator(read_generator_file(tmp_path / "file"), tmp_path / "read.safetensors")
    read, w = load_generator(tmp_path / "read.safetensors"), torch.zeros(1, generator.config.num_ws, 16)
    torch.testing.assert_close(read.images(w), generator.images(w))
