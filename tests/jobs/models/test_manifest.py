import pytest

from jobs.errors import InvalidJob, ManifestInvalid
from jobs.models.manifest import ManifestFile, ModelDefaults, ModelManifest
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


WRITTEN = """# Ours.

[models.old]  # the first
file = "old.safetensors"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
resolution = 32
num_ws = 8
licence = "CC0-1.0"
layout = "test"

[public.lions]  # of others
url = "https://example.org/lions.pkl"
licence = "CC-BY-4.0"
"""
ADDED = """
[models.new]
file = "tiny.safetensors"
sha256 = "0000000000000000000000000000000000000000000000000000000000000000"
resolution = 32
num_ws = 8
w_dim = 16
c_dim = 0
licence = "\u00e9 \\"2\\""
layout = "test"
defaults = { truncation_psi = 0.5, learning_rate = 1e-05 }
"""


@pytest.fixture
def written(tmp_path):
    (tmp_path / "manifest.toml").write_text(WRITTEN)
    return ModelManifest.load(tmp_path)


def test_a_model_is_added_at_the_end_and_all_else_stays(written):
    defaults = ModelDefaults(truncation_psi=0.5, learning_rate=1e-5)
    written.add(TINY.model_copy(update={"name": "new", "licence": '\u00e9 "2"', "defaults": defaults}))
    assert written.text() == WRITTEN + ADDED
    assert ModelManifest.load(written.folder).get("new").licence == '\u00e9 "2"'


def test_a_model_that_is_removed_leaves_the_others_as_they_are(written):
    written.add(TINY.model_copy(update={"name": "new"}))
    written.remove("new")
    assert written.text().rstrip() == WRITTEN.rstrip()
    written.remove("old")
    assert written.text().rstrip() == "# Ours.\n\n" + WRITTEN[WRITTEN.index("[public") :].rstrip()


def test_the_hash_of_a_public_model_is_written_into_its_table(written):
    written.record("lions", "1" * 64)
    assert written.text() == WRITTEN + f'sha256 = "{"1" * 64}"\n'
    assert ModelManifest.load(written.folder).public["lions"].sha256 == "1" * 64
    assert [path.name for path in written.folder.iterdir()] == ["manifest.toml"]
