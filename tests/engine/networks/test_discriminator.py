from dataclasses import replace

import numpy as np
import pytest
import torch

from engine.checkpoints.canonical import write_discriminator
from engine.checkpoints.layouts import read_generator_file
from engine.checkpoints.load import load_discriminator
from engine.errors import CheckpointDamaged
from tests.generators import DATA


@pytest.fixture(scope="module")
def found():
    return read_generator_file(DATA / "sg2-64-nvidia.pkl").discriminator


@pytest.fixture(scope="module")
def discriminator(found, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "d.safetensors"
    write_discriminator(found, path)
    return load_discriminator(path)


@pytest.fixture(scope="module")
def reference():
    with np.load(DATA / "sg2-64.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def test_every_block_says_what_nvidias_says(discriminator, reference):
    features = discriminator.features(reference["image_psi0.7_const"])
    assert list(features) == [64, 32, 16, 8]
    for resolution, output in features.items():
        torch.testing.assert_close(output, reference[f"d_features_b{resolution}"], atol=1e-4, rtol=0)


def test_logits_are_nvidias(discriminator, reference):
    logits = torch.cat([discriminator(image[None]) for image in reference["image_psi0.7_const"]])
    torch.testing.assert_close(logits, reference["d_logits"], atol=1e-4, rtol=0)


def test_images_of_a_batch_are_seen_in_groups(discriminator, reference):
    images = reference["image_psi0.7_const"]
    assert (discriminator(images) - reference["d_logits"]).abs().max() > 1e-4


def test_a_discriminator_that_lacks_a_tensor_is_damaged(found, tmp_path):
    tensors = {name: tensor for name, tensor in found.tensors.items() if name != "b16.skip.weight"}
    with pytest.raises(CheckpointDamaged, match=r"lacks b16\.skip\.weight"):
        write_discriminator(replace(found, tensors=tensors), tmp_path / "d.safetensors")
    assert not list(tmp_path.iterdir())
