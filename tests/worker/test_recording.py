import json

import numpy as np
import pytest
from safetensors.torch import load_file

from cli.offline import Given, OfflineEdit
from jobs.checkpoints import Manifest
from tests.manifests import write_tiny_checkpoints

DOCUMENT = {
    "model": "tiny",
    "source": {"seed": 3},
    "points": [{"handle": [10, 10], "target": [20, 12]}],
    "movable": {"shapes": [{"circle": [14, 14, 12]}]},
    "drag": {"max_iterations": 10, "stop_distance": 0.1},
    "output": {"frames_every": 3, "animation": ["mp4", "webp", "gif"]},
}
KEPT = ["animation.gif", "animation.mp4", "animation.webp", "latent.safetensors", "manifest.json", "overlay.png", "result.png"]


def edit(document, checkpoints, out, seen=lambda step: None):
    return OfflineEdit(document, Given(), checkpoints).run(out, seen)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    return write_tiny_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def edited(checkpoints, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    steps = []
    result = edit(DOCUMENT, checkpoints, out, steps.append)
    return out, result, steps


def test_an_edit_leaves_every_artifact(edited):
    out, _, _ = edited
    assert sorted(path.name for path in out.iterdir()) == sorted([*KEPT, "frames", "source.png", "trajectory.json"])
    assert sorted(path.name for path in (out / "frames").iterdir()) == [f"{k:05d}.webp" for k in (0, 3, 6, 9)]


def test_the_trajectory_lists_each_iteration_once(edited):
    out, result, _ = edited
    story = json.loads((out / "trajectory.json").read_text())
    assert [step["iteration"] for step in story["steps"]] == list(range(11))
    assert story["steps"][0]["handles"] == [[10, 10]]
    assert (story["stop_reason"], story["result_iteration"]) == (result.stop_reason, result.iteration)
    kept = story["steps"][story["result_iteration"]]
    assert kept["distance_px"] == result.distance_px
    assert kept["distance_px"] == pytest.approx(np.hypot(*(np.array(kept["handles"][0]) - [20, 12])), abs=1e-5)


def test_the_latent_is_the_results(edited):
    out, result, _ = edited
    assert (load_file(out / "latent.safetensors")["w"] == result.w).all()


def test_the_manifest_knows_spec_checkpoint_and_hashes(edited, checkpoints):
    out, _, _ = edited
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["checkpoint"]["sha256"] == Manifest.load(checkpoints).get("tiny").sha256
    assert manifest["spec"]["drag"]["learning_rate"] == 0.002
    assert len(manifest["artifacts"]) == 12
    assert manifest["artifacts"]["result.png"]["size_bytes"] == (out / "result.png").stat().st_size


def test_the_same_edit_twice_gives_the_same_bytes(edited, checkpoints, tmp_path):
    out, _, _ = edited
    edit(DOCUMENT, checkpoints, tmp_path)
    names = [
        "result.png",
        "source.png",
        "latent.safetensors",
        "trajectory.json",
        "overlay.png",
        *(f"frames/{k:05d}.webp" for k in (0, 9)),
    ]
    assert all((out / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


def test_no_points_only_renders(checkpoints, tmp_path):
    assert edit({"model": "tiny", "source": {"seed": 3}}, checkpoints, tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latent.safetensors", "manifest.json", "result.png", "source.png"]
    assert (tmp_path / "result.png").read_bytes() == (tmp_path / "source.png").read_bytes()


def test_an_earlier_edit_leaves_nothing_in_the_folder_and_other_files_stay(checkpoints, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    edit(DOCUMENT, checkpoints, tmp_path)
    edit({"model": "tiny", "source": {"seed": 3}}, checkpoints, tmp_path)
    names = ["latent.safetensors", "manifest.json", "notes.txt", "result.png", "source.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_no_frames_make_no_animation(checkpoints, tmp_path):
    edit(DOCUMENT | {"output": {"frames_every": 0}}, checkpoints, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} & {"frames", "animation.mp4"} == set()
