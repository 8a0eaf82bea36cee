import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from cli.edit_files import parse_seeds
from cli.edits import parse_option
from cli.errors import CommandError
from cli.main import app
from tests.manifests import write_tiny_checkpoints


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    write_tiny_checkpoints(folder)

    def run(command, *arguments):
        arguments = [command, "--model", "tiny", "--checkpoints", str(folder), *map(str, arguments)]
        return CliRunner().invoke(app, arguments)

    return run


def test_render_writes_a_grid_and_the_raw_images(run, tmp_path):
    out, npz = tmp_path / "grid.png", tmp_path / "raw.npz"
    assert run("render", "--seeds", "0-4", "--psi", "0.7", "--out", out, "--npz", npz).exit_code == 0
    with np.load(npz) as raw:
        assert (raw["images"].shape, raw["images"].dtype, raw["ws"].shape) == ((5, 3, 32, 32), np.float32, (5, 8, 16))
    with Image.open(out) as grid:
        assert grid.size == (96, 64)


def test_edit_prints_its_result_as_json(run, tmp_path):
    out = tmp_path / "out"
    arguments = ["--seed", 7, "--point", "10,10:14,10", "--movable-circle", "12,12,9", "--option", "max_iterations=5", "--json"]
    result = run("edit", *arguments, "--out", out)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["stop_reason"] in ("reached", "max_iterations")
    assert (out / "animation.mp4").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "10,10:99,10"], "0 to 31 pixels"),
        (["--point", "10,10"], "needs 2 numbers"),
        (["--point", "10,10:14,10", "--option", "speed=3"], "drag.speed"),
        (["--point", "10,10:14,10", "--option", "speed"], "NAME=VALUE"),
        (["--point", "10,10:14,10", "--option", "max_iterations=abc"], "drag.max_iterations"),
        (["--point", "10,10:14,10", "--movable", "/nowhere.png"], "No such file or directory: '/nowhere.png'"),
    ],
)
def test_edit_says_what_is_wrong_in_a_sentence(run, tmp_path, arguments, message):
    result = run("edit", "--seed", 7, "--out", tmp_path / "out", *arguments)
    assert isinstance(result.exception, (CommandError, OSError))
    assert message in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [["--psi", "nan"], ["--psi", "9"], ["--noise", "random"], ["--out", "grid.xyz"]])
def test_render_refuses_what_makes_no_picture(run, tmp_path, arguments):
    assert run("render", "--out", tmp_path / "grid.png", *arguments).exit_code != 0
    assert not (tmp_path / "grid.png").exists()


def test_an_edit_without_points_says_so_as_json(run, tmp_path):
    assert json.loads(run("edit", "--seed", 7, "--json", "--out", tmp_path / "out").stdout)["stop_reason"] is None


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("1,5,9-12") == [1, 5, 9, 10, 11, 12]


@pytest.mark.parametrize("text", ["", "a", "3-", "1,5-3", "0-9999", "4294967296", "0-99999999999"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(CommandError, match="--seeds must"):
        parse_seeds(text)


def test_options_are_json_where_they_can_be():
    assert [parse_option(text, "--option") for text in ("a=3", "b=w+", "c=null")] == [("a", 3), ("b", "w+"), ("c", None)]
