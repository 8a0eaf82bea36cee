import pytest
import torch

from jobs.models.manifest import ModelManifest
from tests.manifests import write_tiny_checkpoints
from worker.execution.model_cache import ModelCache


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return ModelManifest.load(write_tiny_checkpoints(tmp_path_factory.mktemp("checkpoints")))


def used(manifest, limit_bytes, *names):
    models = ModelCache(torch.device("cpu"), limit_bytes)
    for name in names:
        models.get(manifest, manifest.get(name))
    return models


def test_models_stay_in_memory_the_last_used_last(manifest):
    assert used(manifest, 10**9, "tiny", "slow", "tiny").names() == ["slow", "tiny"]


def test_the_same_model_is_read_once(manifest):
    models = used(manifest, 0, "tiny")
    generator = models.get(manifest, manifest.get("tiny"))
    assert models.get(manifest, manifest.get("tiny")) is generator


def test_models_make_room_for_what_does_not_fit_beside_them(manifest):
    assert used(manifest, 0, "tiny", "slow").names() == ["slow"]
