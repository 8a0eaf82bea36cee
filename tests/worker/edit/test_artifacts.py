import json
from importlib.metadata import version
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from cli.artifacts import ArtifactFolder
from cli.offline import FolderSink, Given, OfflineEdit
from jobs.models.manifest import ModelManifest
from tests.generators import tiny_generator
from tests.manifests import write_tiny_checkpoints
from worker.edit.artifacts import ArtifactWriter
from worker.edit.inputs import EditStart, Photo

DOCUMENT = {
    "model": "tiny",
    "source": {"seed": 3},
    "points": [{"handle": [10, 10], "target": [20, 12]}],
    "movable": {"shapes": [{"circle": [14, 14, 12]}]},
    "drag": {"max_iterations": 10, "stop_distance": 0.1},
    "output": {"frames_every": 3, "animation": ["mp4", "webp", "gif"]},
}
NO_FILES = Given()
GENERATED, EDITED = (
    f"http://cv.iptc.org/newscodes/digitalsourcetype/{word}"
    for word in ("trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia")
)
KEPT = ["animation.gif", "animation.mp4", "animation.webp", "latent.safetensors", "manifest.json", "overlay.png", "result.png"]


def edit(document, checkpoints, out, seen=lambda step: None, given=NO_FILES):
    return OfflineEdit(document, given, checkpoints).run(out, seen)


def source_types(out):
    """What each picture and animation of a folder says it is, by name; None where it says nothing."""
    files = [path for path in out.rglob("*") if path.suffix in (".png", ".webp", ".gif", ".mp4")]
    return {str(path.relative_to(out)): source_type(path.read_bytes()) for path in files}


def source_type(data):
    start = data.find(b"<x:xmpmeta")
    if start < 0:
        return None
    end = data.index(b"</x:xmpmeta>") + len(b"</x:xmpmeta>")
    (description,) = ElementTree.fromstring(data[start:end])[0]  # noqa: S314  # our own
    assert description.attrib["{http://ns.adobe.com/xap/1.0/}CreatorTool"] == f"Dragqueue {version('dragqueue')}"
    return description.attrib["{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"]


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 48, 3), dtype=np.uint8)).save(path)
    return path


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
    assert manifest["checkpoint"]["sha256"] == ModelManifest.load(checkpoints).get("tiny").sha256
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
        *(f"animation.{kind}" for kind in ("mp4", "webp", "gif")),
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


def test_every_picture_of_a_seed_says_that_it_was_generated(edited):
    out, _, _ = edited
    animations = [name for name in KEPT if name.startswith("animation")]
    pictures = ["source.png", "result.png", "overlay.png", *(f"frames/{k:05d}.webp" for k in (0, 3, 6, 9)), *animations]
    assert source_types(out) == dict.fromkeys(pictures, GENERATED)
    assert json.loads((out / "manifest.json").read_text())["digital_source_type"] == GENERATED


def test_pictures_of_a_photo_say_that_it_was_edited_but_its_crop_says_nothing(checkpoints, photo, tmp_path):
    out = tmp_path / "out"
    document = DOCUMENT | {"source": {}, "inversion": {"steps": 2, "tuning_steps": 1}, "output": {"animation": ["gif"]}}
    edit(document, checkpoints, out, given=Given(image=photo))
    said = source_types(out)
    assert said.pop("source.png") is None
    assert {"inverted.png", "result.png", "photo.png", "overlay.png", "animation.gif", "frames/00000.webp"} <= said.keys()
    assert set(said.values()) == {EDITED}
    assert json.loads((out / "manifest.json").read_text())["digital_source_type"] == EDITED


@pytest.mark.parametrize("kept", [True, False], ids=["photo", "tuned"])
def test_what_goes_on_from_a_photo_begins_with_an_edited_picture(kept, checkpoints, photo, tmp_path):
    spec = OfflineEdit(DOCUMENT, Given(), checkpoints).spec
    generator, read = tiny_generator(), Photo.read(photo.read_bytes(), None, 32)
    w = generator.map(seed=3, truncation_psi=0.7)
    tuned_tensors = {"synthesis.b4.const": generator.state_dict()["synthesis.b4.const"]}
    seen = {"photo": read} if kept else {"tuned_tensors": tuned_tensors}
    start = EditStart(generator=generator, w=w, crop_transform=read.crop_transform, **seen)
    with ArtifactWriter(spec, start, None, FolderSink(ArtifactFolder(tmp_path / "out"))):
        pass
    assert source_types(tmp_path / "out") == {"source.png": EDITED}
