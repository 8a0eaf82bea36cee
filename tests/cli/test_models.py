import subprocess
import sys
import tomllib

import numpy as np
import pytest
from typer.testing import CliRunner

from cli.errors import CommandError
from cli.main import app
from jobs.settings import REPOSITORY
from tests.generators import DATA


@pytest.fixture
def run(tmp_path):
    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments), "--checkpoints", str(tmp_path / "checkpoints")])

    return run


def imported(run, file="sg2-64-nvidia.pkl", name="faces", *options):
    return run("models", "import", DATA / file, "--name", name, *options)


@pytest.mark.parametrize("file", ["sg2-64-nvidia.pkl", "sg2-64-tf.pkl", "sg2-64-rosinality.pt"])
def test_an_imported_model_renders_nvidias_images(run, tmp_path, file):
    assert imported(run, file).exit_code == 0
    arguments = [
        "render",
        "--model",
        "faces",
        "--seeds",
        "1-3",
        "--psi",
        "0.7",
        "--out",
        tmp_path / "grid.png",
        "--npz",
        tmp_path / "raw",
    ]
    assert run(*arguments).exit_code == 0
    with np.load(tmp_path / "raw") as raw, np.load(DATA / "sg2-64.npz") as reference:
        np.testing.assert_allclose(raw["images"], reference["image_psi0.7_const"], atol=1e-4)
        np.testing.assert_allclose(raw["ws"], reference["ws_psi0.7"], atol=1e-5)


def test_the_manifest_knows_both_files(run, tmp_path):
    imported(run, "sg2-64-nvidia.pkl", "faces", "--licence", 'a "quoted" one')
    entry = tomllib.loads((tmp_path / "checkpoints" / "manifest.toml").read_text())["models"]["faces"]
    assert (entry["layout"], entry["resolution"], entry["num_ws"], entry["licence"]) == ("nvidia", 64, 10, 'a "quoted" one')
    assert entry["sha256"] != entry["source_sha256"]
    assert run("models", "verify").exit_code == 0


def test_a_file_that_was_changed_is_found(run, tmp_path):
    imported(run)
    path = tmp_path / "checkpoints" / "faces.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert str(run("models", "verify").exception) == (
        "faces is not what the manifest says: the hash of faces.safetensors differs"
    )
    path.unlink()
    assert "faces is missing" in str(run("models", "verify").exception)


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_mistyped_folder_is_said_and_not_made(run, tmp_path, command):
    assert isinstance(run("models", command).exception, CommandError)
    assert not (tmp_path / "checkpoints").exists()


def test_everybody_may_read_an_imported_model(run, tmp_path):
    imported(run)
    assert (tmp_path / "checkpoints" / "faces.safetensors").stat().st_mode & 0o777 == 0o644


def test_a_removed_model_leaves_the_others(run, tmp_path):
    for name in ("one", "two", "three"):
        imported(run, "sg2-64-rosinality.pt", name)
    assert run("models", "remove", "two").exit_code == 0
    assert set(tomllib.loads((tmp_path / "checkpoints" / "manifest.toml").read_text())["models"]) == {"one", "three"}
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "manifest.toml",
        "one.safetensors",
        "three.safetensors",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "../faces"], "--name must be"),
        (["--name", "faces", "--channel-order", "grb"], "--channel-order must be"),
    ],
)
def test_bad_arguments_are_refused_in_a_sentence(run, tmp_path, arguments, message):
    result = run("models", "import", DATA / "sg2-64-nvidia.pkl", *arguments)
    assert isinstance(result.exception, CommandError)
    assert message in str(result.exception)


@pytest.mark.parametrize("licence", ["MIT \U0001f600", 'a "b" \\ud83d [/red] \u00e9', "\u200f'''", ""])
def test_every_licence_of_one_line_reads_back(run, tmp_path, licence):
    assert imported(run, "sg2-64-rosinality.pt", "faces", "--licence", licence).exit_code == 0
    entry = tomllib.loads((tmp_path / "checkpoints" / "manifest.toml").read_text())["models"]["faces"]
    assert entry["licence"] == licence
    assert run("models", "list").exit_code == 0


@pytest.mark.parametrize("licence", ["two\nlines", "half \udcff", "\x1b[2J", "x" * 501])
def test_a_licence_that_is_no_line_is_refused_by_its_option(run, tmp_path, licence):
    result = imported(run, "sg2-64-rosinality.pt", "faces", "--licence", licence)
    assert isinstance(result.exception, CommandError)
    assert str(result.exception).startswith("--licence must ")
    assert not (tmp_path / "checkpoints").exists()


def test_an_entry_that_is_not_valid_is_told_and_can_be_removed(run, tmp_path):
    imported(run)
    manifest = tmp_path / "checkpoints" / "manifest.toml"
    manifest.write_text(manifest.read_text() + "[models.broken]\nfile = 3\n")
    assert "'broken' is not valid: file Input should be a valid string" in str(run("models", "verify").exception)
    assert run("render", "--seeds", 1, "--model", "faces", "--out", tmp_path / "grid.png").exit_code == 0
    assert "already" in str(imported(run, "sg2-64-tf.pkl", "broken").exception)
    assert run("models", "remove", "broken").exit_code == 0
    assert run("models", "verify").exit_code == 0


def test_a_name_is_given_once(run):
    imported(run)
    assert "already" in str(imported(run).exception)


def test_a_file_that_is_none_leaves_nothing(run, tmp_path):
    (tmp_path / "file.pkl").write_bytes(b"cos\nsystem\n(S'ls'\ntR.")
    result = run("models", "import", tmp_path / "file.pkl", "--name", "faces")
    assert isinstance(result.exception, CommandError)
    assert "the pickle names os.system" in str(result.exception)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["manifest.toml"]


def test_a_discriminator_comes_along_and_goes_along(run, tmp_path):
    imported(run)
    beside = tmp_path / "checkpoints" / "faces.discriminator.safetensors"
    entry = tomllib.loads((tmp_path / "checkpoints" / "manifest.toml").read_text())["models"]["faces"]
    assert entry["discriminator"] == beside.name
    assert run("models", "verify").exit_code == 0
    beside.write_bytes(beside.read_bytes()[:-1] + b"x")
    assert "faces.discriminator.safetensors differs" in str(run("models", "verify").exception)
    assert run("models", "remove", "faces").exit_code == 0
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["manifest.toml"]


def test_an_import_without_room_says_so_and_leaves_nothing(tmp_path):
    program = (
        "import resource; from cli.main import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))  # bytes that a file may have\n"
        "main()"
    )
    command = ["models", "import", str(DATA / "sg2-64-nvidia.pkl"), "--name", "faces", "--checkpoints", str(tmp_path)]
    answer = subprocess.run([sys.executable, "-c", program, *command], cwd=REPOSITORY, capture_output=True, text=True)
    assert answer.returncode == 1
    assert "faces.safetensors cannot be written" in answer.stderr
    assert "Traceback" not in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.toml"]
