"""What the reading of a file costs is counted, whatever it is that costs."""

import numpy as np
import pytest

from engine.checkpoints.budget import MAX_DEPTH, MAX_OPERATIONS, ReadingBudget
from engine.checkpoints.canonical import compute_w_avg, infer_generator_config, write_networks
from engine.checkpoints.layouts import read_generator_file
from engine.errors import CheckpointDamaged
from engine.networks.config import GeneratorConfig
from tests.engine.checkpoints.hostile_files import HOSTILE
from tests.generators import DATA

REASONS = {
    "module graphs: 18 deep 2 wide zip": "more than 1000000 operations",
    "colliding keys: table": "a key is a int",
    "colliding keys: set": "a key is a int",
    "colliding keys: memo": "a memo of more than",
    "colliding keys: a storage's key zip": f"nested more than {MAX_DEPTH} deep",
    "colliding keys: the keys of storages zip": "the key of a storage",
    "large products: 1000 of 4000 bits zip": "a number of 4000 bits",
    "large products: 2000 of 64 bits stream": "a list of at most 8 numbers",
    "repeated work: encode 20000": "more than 8 times as large as the file",
    "repeated work: ordered 400": "more than 1000000 operations",
    "repeated work: stream 400": "more than 8 times as large as the file",
    "repeated work: streams in streams": "an embedded stream",
    "large numbers: rosinality noises.noise_{} 2^33": "no generator of up to 1024 px has",
    "large networks: z_dim": "z_dim must be a whole number from 1 to 1024, got 16000",
    "large networks: w_dim": "w_dim must be a whole number from 1 to 1024, got 16000",
    "large networks: 512 512 8 1024 zip": "more than 8 times as large as the file",
    "large networks: 512 1024 60 256 zip": "mapping_layers must be a whole number from 1 to 16, got 60",
    "nesting: lists 1000": f"nested more than {MAX_DEPTH} deep",
    "long files: marks": "more than 1000000 operations",
    "wrong archives: many members": "list of members",
    "wrong types: tensorflow synthesis/4x4/Const/const text plain": "'synthesis/4x4/Const/const' must be a tensor, is 'x'",
    "wrong settings: tensorflow conv_clamp table": "'conv_clamp' must be a number, is a dict",
    "wrong settings: tensorflow conv_clamp nan": "conv_clamp must be none or a number above 0",
    "wrong settings: nvidia conv_clamp negative": "conv_clamp must be none or a number above 0",
    "wrong settings: nvidia conv_clamp huge": "a number of 1329 bits",
}


@pytest.mark.parametrize("name", REASONS)
def test_a_bomb_is_refused_for_what_it_is(tmp_path, name):
    (tmp_path / "file").write_bytes(HOSTILE[name]())
    with pytest.raises(CheckpointDamaged, match=REASONS[name].replace("(", r"\(")):
        write_networks(read_generator_file(tmp_path / "file"), tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_member_that_is_named_400_times_is_read_once(tmp_path):
    data = HOSTILE["repeated work: member 1"]()
    (tmp_path / "file").write_bytes(data)
    budget = ReadingBudget.for_file(len(data))
    before = budget.bytes_left
    with pytest.raises(Exception, match="no StyleGAN2 generator"):
        read_generator_file(tmp_path / "file", budget)
    assert before - budget.bytes_left < 1.1 * len(data)


def test_files_in_good_order_take_a_tenth_of_the_budget():
    for path in sorted(DATA.glob("sg2-64-*.p*")):
        budget = ReadingBudget.for_file(path.stat().st_size)
        infer_generator_config(read_generator_file(path, budget))
        assert MAX_OPERATIONS - budget.operations_left < MAX_OPERATIONS / 10


def test_a_mean_of_w_is_computed_only_where_that_is_no_more_work_than_for_known_networks():
    tensors = {f"mapping.fc{i}.weight": np.ones((1024, 1024), "f4") for i in range(16)}
    budget = ReadingBudget.for_file(0)
    with pytest.raises(CheckpointDamaged, match="operations"):
        compute_w_avg(tensors, GeneratorConfig(resolution=32, z_dim=1024, w_dim=1024, mapping_layers=16), budget)
    budget.spend_multiplications(10_000 * 8 * 512 * 512)  # as for a network of the usual size


def test_a_mean_of_w_that_is_not_finite_is_damage():
    tensors = {"mapping.fc0.weight": np.full((16, 16), 3e38, "f4"), "mapping.fc0.bias": np.full(16, 3e38, "f4")}
    tensors |= {"mapping.fc1.weight": tensors["mapping.fc0.weight"], "mapping.fc1.bias": tensors["mapping.fc0.bias"]}
    config = GeneratorConfig(resolution=32, z_dim=16, w_dim=16, mapping_layers=2)
    with pytest.raises(CheckpointDamaged, match="the mean of w is not finite"):
        compute_w_avg(tensors, config, ReadingBudget.for_file(0))
