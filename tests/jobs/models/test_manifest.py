import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.errors import InvalidJob, ManifestInvalid
from jobs.models.manifest import ManifestFile, ModelDefaults, ModelManifest, check_text
from tests.manifests import TINY, write_tiny_checkpoints


def test_the_manifest_lists_its_models(tmp_path):
    manifest = ModelManifest.load(write_tiny_checkpoints(tmp_path))
    assert set(manifest.models) == {"tiny", "slow", "missing", "damaged"}
    assert manifest.path(manifest.get("tiny")).exists()


def test_an_unknown_model_is_told_with_the_known_ones(tmp_path):
    with pytest.raises(InvalidJob, match="unknown model 'lions'; known models: damaged, missing, slow, tiny"):
        ModelManifest.load(write_tiny_checkpoints(tmp_path)).get("lions")


@pytest.mark.parametrize("text", ["", "models = 3", "[models", "x = \udcff"])
def test_what_is_no_manifest_is_said_without_its_path(tmp_path, text):
    (tmp_path / "manifest.toml").write_text(text, errors="surrogateescape")
    with pytest.raises(ManifestInvalid, match=r"^manifest.toml is not a checkpoint manifest") as caught:
        ModelManifest.load(tmp_path)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("defaults", ["learning_rate = -5", "feature_resolution = 48", "truncation_psi = 9", "speed = 3"])
def test_defaults_that_no_job_could_take_are_refused(tmp_path, defaults):
    write_tiny_checkpoints(tmp_path)
    path = tmp_path / "manifest.toml"
    path.write_text(path.read_text().replace("[models.slow]", f"defaults = {{ {defaults} }}\n[models.slow]"))
    manifest = ModelManifest.load(tmp_path)
    assert list(manifest.invalid) == ["tiny"]
    assert set(manifest.models) == {"slow", "missing", "damaged"}


def test_a_job_for_an_entry_that_is_not_valid_is_told_so_and_the_log_tells_where(tmp_path, caplog):
    write_tiny_checkpoints(tmp_path)
    path = tmp_path / "manifest.toml"
    path.write_text(path.read_text().replace("resolution = 32", "resolution = 'wide'", 1))
    manifest = ModelManifest.load(tmp_path)
    for ask, error in ((manifest.get, InvalidJob), (manifest.require_valid, ManifestInvalid)):
        with pytest.raises(error, match="the entry of model 'tiny' in the service's manifest is not valid") as caught:
            ask("tiny")
        assert str(tmp_path) not in str(caught.value)
    assert f"{path}: the entry of model tiny is not valid: resolution Input should be a valid integer" in caplog.text


BROKEN_LINES = [
    'licence = "MIT \\ud83d\\ude00"', "licence = 'open", 'licence = """open', "licence =", "]", "file = 3\nfile = 4",
    "x = [[[[", "\\",
]  # fmt: skip


@pytest.mark.parametrize("line", BROKEN_LINES)
@pytest.mark.parametrize("place", ["slow", "tiny", "damaged"])
def test_a_line_that_is_no_toml_disables_its_own_entry_alone(tmp_path, place, line):
    write_tiny_checkpoints(tmp_path)
    path = tmp_path / "manifest.toml"
    path.write_text(path.read_text().replace(f"[models.{place}]", f"[models.{place}]\n{line}"))
    manifest = ModelManifest.load(tmp_path)
    assert list(manifest.invalid) == [place]
    assert set(manifest.models) == {"tiny", "slow", "missing", "damaged"} - {place}
    manifest.add(TINY.model_copy(update={"name": "more"}))
    assert set(ModelManifest.load(tmp_path).models) == {"tiny", "slow", "missing", "damaged", "more"} - {place}


def test_an_entry_that_is_there_twice_counts_neither_time(tmp_path):
    write_tiny_checkpoints(tmp_path)
    path = tmp_path / "manifest.toml"
    text = path.read_text()
    path.write_text(text + text[text.index("[models.slow]") :])
    manifest = ModelManifest.load(tmp_path)
    assert set(manifest.models) == {"tiny"}
    assert set(manifest.invalid) == {"slow", "missing", "damaged"}


def test_a_public_entry_that_is_not_valid_disables_nothing(tmp_path):
    (tmp_path / "manifest.toml").write_text(WRITTEN.replace("https:", "file:"))
    manifest = ModelManifest.load(tmp_path)
    assert list(manifest.models) == ["old"]
    assert list(manifest.invalid) == ["public.lions"]


def test_what_would_not_read_back_replaces_nothing(written):
    for licence in ("two\nlines", "half \ud83d", "x" * 501):
        with pytest.raises(ManifestInvalid, match=r"manifest\.toml"):
            written.add(TINY.model_copy(update={"name": "new", "licence": licence}))
    with pytest.raises(ManifestInvalid, match="there is a model old already"):
        written.add(TINY.model_copy(update={"name": "old"}))
    assert written.text() == WRITTEN
    assert [path.name for path in written.folder.iterdir()] == ["manifest.toml"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(licence=st.text(max_size=60))
def test_every_licence_reads_back_or_is_refused(tmp_path, licence):
    (tmp_path / "manifest.toml").write_text("[models]\n")
    manifest = ModelManifest(tmp_path, {})
    try:
        check_text(licence)
    except ValueError:
        with pytest.raises(ManifestInvalid):
            manifest.add(TINY.model_copy(update={"licence": licence}))
        assert ModelManifest.load(tmp_path).models == {}
    else:
        manifest.add(TINY.model_copy(update={"licence": licence}))
        assert ModelManifest.load(tmp_path).get("tiny").licence == licence


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
