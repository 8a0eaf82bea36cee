import hashlib
import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoints.load import load_encoder, load_generator, save_network
from engine.errors import CheckpointDamaged, CheckpointMissing
from tests.generators import some_w, tiny_generator


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_network(tiny_generator(), path)
    return path


def test_a_saved_generator_renders_the_same_picture(saved):
    loaded, generator = load_generator(saved), tiny_generator()
    assert loaded.config == generator.config
    assert (loaded.render(some_w(loaded)) == generator.render(some_w(generator))).all()
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_saving_leaves_nothing_but_the_file(saved):
    assert [path.name for path in saved.parent.iterdir()] == ["tiny.safetensors"]


def test_the_hash_is_verified(saved):
    sha256 = hashlib.sha256(saved.read_bytes()).hexdigest()
    load_generator(saved, sha256=sha256)
    with pytest.raises(CheckpointDamaged, match="the manifest says 000000000000"):
        load_generator(saved, sha256="0" * 64)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointMissing, match=r"nowhere\.safetensors"):
        load_generator(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-100], lambda data: b"", lambda data: b"\xff" * 64, lambda data: data[:20]]
)
def test_a_damaged_file_gives_one_sentence(saved, damage):
    saved.write_bytes(damage(saved.read_bytes()))
    with pytest.raises(CheckpointDamaged, match=r"^checkpoint tiny.safetensors cannot be read: [^\n]+$"):
        load_generator(saved)


def test_a_file_without_all_tensors_is_damaged(saved):
    tensors = load_file(saved)
    del tensors["synthesis.b8.conv1.weight"]
    config = {"resolution": 32, "z_dim": 16, "w_dim": 16, "mapping_layers": 2, "channel_base": 512, "channel_max": 16}
    save_file(tensors, saved, metadata={"config": json.dumps(config)})
    with pytest.raises(CheckpointDamaged):
        load_generator(saved)


def test_a_file_of_another_kind_is_damaged(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(3)}, path)
    with pytest.raises(CheckpointDamaged):
        load_generator(path)


GOOD = {"resolution": 32, "z_dim": 16, "w_dim": 16, "mapping_layers": 2, "channel_base": 512, "channel_max": 16}
BAD_CONFIGS = [
    *({"conv_clamp": clamp} for clamp in ("abc", -1, 0, float("nan"), float("inf"), 10**400, [256], True, 1e7)),
    *({"resolution": resolution} for resolution in (48, 2048, 2**30, "32", 32.0, None, True)),
    *({name: value} for name in ("z_dim", "w_dim", "channel_max", "mapping_layers") for value in (0, -1, 20_000, 1.5, "16")),
    {"channel_base": 2**40}, {"c_dim": 10**9}, {"architecture": ["skip"]}, {"architecture": "x" * 10**6}, {"\x1b[2J": 1},
]  # fmt: skip


@pytest.mark.parametrize("change", BAD_CONFIGS, ids=lambda change: ascii(change)[:40])
def test_a_config_that_no_network_has_is_damage(saved, change):
    save_file(load_file(saved), saved, metadata={"config": json.dumps(GOOD | change)})
    with pytest.raises(CheckpointDamaged, match=r"^checkpoint tiny.safetensors cannot be read: ") as caught:
        load_generator(saved)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("config", ["[]", "3", "null", "{", "[" * 100_000, '"text"'])
def test_a_config_that_is_no_table_is_damage(saved, config):
    save_file(load_file(saved), saved, metadata={"config": config})
    with pytest.raises(CheckpointDamaged):
        load_generator(saved)


def test_a_config_that_is_larger_than_its_file_takes_no_memory(saved):
    """The network of this config has 3 GB."""
    large = GOOD | {"resolution": 1024, "channel_max": 2048, "channel_base": 2**21}
    save_file(load_file(saved), saved, metadata={"config": json.dumps(large)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointDamaged, match="cannot be read: it lacks"):
        load_generator(saved)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


@pytest.mark.parametrize("widths", [[], [0], "wide", [32.5], [2**40], [8] * 40, None])
def test_an_encoder_of_impossible_widths_is_damage(tmp_path, widths):
    config = {"resolution": 32, "w_dim": 16, "widths": widths}
    save_file({"x": torch.zeros(3)}, tmp_path / "encoder.safetensors", metadata={"config": json.dumps(config)})
    with pytest.raises(CheckpointDamaged, match="widths"):
        load_encoder(tmp_path / "encoder.safetensors")
