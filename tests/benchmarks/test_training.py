import torch
from safetensors.torch import load_file

from benchmarks import train_detector, train_encoder
from benchmarks.training import Trainer
from engine.checkpoints.load import load_encoder


def test_a_run_goes_on_where_its_folder_stands(tmp_path):
    torch.manual_seed(0)
    first = Trainer(train_detector.build(1000))
    first.step()
    first.save(tmp_path)
    again = Trainer(train_detector.build(1000))
    again.load(tmp_path)
    assert again.seen == first.seen == 16
    kept, exported = again.average.state_dict(), load_file(tmp_path / "detector.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in exported.items())
    losses = []
    for trainer in (first, again):
        torch.manual_seed(1)
        losses.append(trainer.step())
    assert losses[0] == losses[1]


def test_the_encoders_recipe_writes_what_the_engine_loads(tmp_path):
    trainer = Trainer(train_encoder.build(1000))
    trainer.step()
    trainer.save(tmp_path)
    encoder = load_encoder(tmp_path / "encoder.safetensors")
    assert encoder(torch.zeros(2, 3, 128, 128)).shape == (2, 64)
