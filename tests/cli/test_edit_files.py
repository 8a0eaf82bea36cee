import pytest
from typer.testing import CliRunner

from cli.edit_files import read_edits
from cli.errors import CommandError
from cli.main import app


def test_a_grid_of_seeds_and_drags_is_written(tmp_path):
    out = tmp_path / "edits.jsonl"
    drags = ["--drag", "1,2:3,4", "--drag", "5,6:7,8; 1,1:2,2"]
    done = CliRunner().invoke(app, ["bulk", "make", "--seeds", "0-2", *drags, "--option", "max_iterations=5", "--out", str(out)])
    assert done.exit_code == 0
    edits = read_edits(out)
    assert [edit.custom_id for edit in edits][:4] == [
        "seed00000-drag00",
        "seed00001-drag00",
        "seed00002-drag00",
        "seed00000-drag01",
    ]
    assert edits[-1].job == {
        "model": "demo-faces", "source": {"seed": 2}, "drag": {"max_iterations": 5},
        "points": [{"handle": [5, 6], "target": [7, 8]}, {"handle": [1, 1], "target": [2, 2]}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.jsonl", "", "has no edit"),
        ("a.jsonl", "{", "line 1 is not JSON"),
        ("a.jsonl", '{"job": {}}\n[]', "line 2 must be an object"),
        ("a.jsonl", '{"job": {}, "custom_id": "../x"}', "cannot be the name of a folder"),
        ("a.jsonl", '{"job": {}, "custom_id": "x"}\n{"job": {}, "custom_id": "x"}', "edit 2: the custom_id 'x' is there twice"),
        ("a.jsonl", '{"job": {}, "image": "no.png"}', "there is no photo"),
        ("a.csv", "model,points\ntiny,1,2:3,4\n", "not as many fields"),
        ("a.csv", "model,points\ntiny,1:2\n", "edit 1, points"),
    ],
)
def test_what_is_no_file_of_edits_is_refused_by_line(tmp_path, name, text, reason):
    (tmp_path / name).write_text(text)
    with pytest.raises(CommandError, match=reason):
        read_edits(tmp_path / name)
