import pytest

from jobs.errors import InvalidJob, ManifestInvalid
from jobs.models.manifest import ManifestFile, ModelManifest
from tests.manifests import TINY, write_tiny_checkpoints


def test_the_manifest_lists_its_models(tmp_path):
    manifest = ModelManifest.load(write_tiny_checkpoints(tmp_path))
    assert set(manifest.models) == {"tiny", "slow", "missing", "damaged"}
    assert manifest.path(manifest.get("tiny")).exists()


def test_an_unknown_model_is_told_with_the_known_ones(tmp_path):
    with pytest.raises(InvalidJob, match="unknown model 'lions'; known models: damaged, missing, slow, tiny"):
        ModelManifest.load(write_tiny_checkpoints(tmp_path)).get("lions")


@pytest.mark.parametrize("text", ["", "models = 3", "[models.a]\nfile = 'x'", "[models"])
def test_what_is_no_manifest_is_said_with_its_path(tmp_path, text):
    (tmp_path / "manifest.toml").write_text(text)
    with pytest.raises(ManifestInvalid, match=r"manifest.toml is not a checkpoint manifest"):
        ModelManifest.load(tmp_path)


@pytest.mark.parametrize("defaults", ["learning_rate = -5", "feature_resolution = 48", "truncation_psi = 9", "speed = 3"])
def test_defaults_that_no_job_could_take_are_refused(tmp_path, defaults):
    write_tiny_checkpoints(tmp_path)
    path = tmp_path / "manifest.toml"
    path.write_text(path.read_text().replace("[models.slow]", f"defaults = {{ {defaults} }}\n[models.slow]"))
    with pytest.raises(ManifestInvalid):
        ModelManifest.load(tmp_path)


def test_a_missing_manifest_is_said(tmp_path):
    with pytest.raises(ManifestInvalid, match="No such file"):
        ModelManifest.load(tmp_path)


def test_a_manifest_file_is_read_again_when_it_has_changed(tmp_path):
    (tmp_path / "manifest.toml").write_text("[models]\n")
    file = ManifestFile(tmp_path)
    assert file.current() is file.current()
    file.current().add(TINY)
    assert set(file.current().models) == {"tiny"}


def test_a_slip_of_the_editors_leaves_the_last_manifest(tmp_path):
    (tmp_path / "manifest.toml").write_text("[models]\n")
    file = ManifestFile(tmp_path)
    file.current().add(TINY)
    assert set(file.current().models) == {"tiny"}
    (tmp_path / "manifest.toml").write_text("[models")
    assert set(file.current().models) == {"tiny"}
