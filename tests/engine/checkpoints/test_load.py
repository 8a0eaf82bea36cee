import hashlib
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.checkpoints.load import load_generator, save_network
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
