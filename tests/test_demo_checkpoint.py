"""The checkpoint that we ship: it draws what its recipe says, and it can be dragged."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.faces.factors import factors_of
from benchmarks.faces.parts import LANDMARKS
from benchmarks.faces.renderer import render
from benchmarks.quality.fidelity import measure, summarize
from benchmarks.quality.methods import service_options
from benchmarks.quality.rulers import LandmarkRuler
from benchmarks.quality.studies import LOST_PX
from benchmarks.train_demo import evaluate
from cli.demo import EDITS
from cli.offline import Given, OfflineEdit
from engine.drag.loop import drag, to_points
from jobs.models.manifest import ModelManifest
from jobs.settings import REPOSITORY
from worker.edit.engine_setup import open_generator


@pytest.fixture(scope="module")
def model():
    return ModelManifest.load(REPOSITORY / "checkpoints").get("demo-faces")


@pytest.fixture(scope="module")
def generator(model):
    return open_generator(ModelManifest.load(REPOSITORY / "checkpoints"), model, torch.device("cpu"))


@pytest.fixture(scope="module")
def ruler(generator):
    return LandmarkRuler(generator)


def test_it_draws_the_faces_behind_held_out_z(generator):
    assert evaluate(generator, 128, count=32) > 30  # dB; a mean picture has 11


def test_the_detector_sees_its_features_where_they_should_be(generator, ruler):
    found = summarize(list(measure(generator, ruler.detector, range(100_000, 100_040))))
    errors = {error.landmarks: error for error in found.errors}
    for group in ("pupils", "mouth corners", "brows"):
        assert errors[group].generated_median < 1.0, group  # pixels
    assert errors["all"].generated_p95 < 2.0


def test_truncated_samples_are_the_faces_of_truncated_factors(generator):
    z = torch.randn(8, 64, generator=torch.Generator().manual_seed(5))
    ws = generator.broadcast(generator.mapping.truncate(generator.mapping(z), 0.5))
    error = (generator.images(ws).clamp(-1, 1) - render(factors_of(z, psi=0.5), 128).images).square().mean() / 4
    assert -10 * error.log10() > 25


def test_the_demos_edits_reach_their_targets_and_leave_alone_what_is_masked(tmp_path):
    for name, document in EDITS.items():
        edit = OfflineEdit(document | {"output": {"frames_every": 0}}, Given(), REPOSITORY / "checkpoints")
        result = edit.run(tmp_path, lambda step: None)
        assert (name, result.stop_reason, result.distance_px <= 1) == (name, "reached", True)
    before, after = (np.asarray(Image.open(tmp_path / f"{part}.png")).astype(float)[~edit.mask] for part in ("source", "result"))
    assert 10 * np.log10(255**2 / np.square(before - after).mean()) > 38  # dB, of the last edit, which has a mask


@pytest.mark.parametrize(("preset", "iterations"), [("default", 100), ("fast", 15)])
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_the_nose_can_be_dragged_sideways(generator, ruler, model, seed, preset, iterations):
    """15.4 px, 12 % of the width, towards the side that is farther away."""
    psi = model.defaults.truncation_psi
    w, nose = generator.map(seed=seed, truncation_psi=psi), LANDMARKS.index("nose_tip")
    x, y = ruler.landmarks(w)[nose].tolist()
    handle, target = to_points([(x, y)]), to_points([(x + (15.4 if x < 64 else -15.4), y)])
    *_, result = drag(generator, w, handle, target, options=service_options(model, 1, preset=preset, max_iterations=iterations))
    assert result.stop_reason == "reached"
    assert np.linalg.norm(ruler.landmarks(result.w)[nose] - target.numpy()) < LOST_PX  # by the detector


def inverted(image, crop, out, **edit):
    """Artifacts of an inversion, perhaps with a drag, with the options that a job would have."""
    document = {"model": "demo-faces", "source": {} if crop is None else {"crop": {"box": crop}}, "output": {"frames_every": 0}}
    OfflineEdit(document | edit, Given(image=image), REPOSITORY / "checkpoints").run(out, lambda step: None)
    return {path.stem: np.asarray(Image.open(path)).astype(float) for path in out.glob("*.png")}


def test_a_held_out_drawing_is_found_and_fitted(tmp_path):
    z = torch.randn(1, 64, generator=torch.Generator().manual_seed(99))
    picture = (render(factors_of(z, psi=0.7), 128).images[0].permute(1, 2, 0).numpy() + 1) * 127.5
    Image.fromarray(picture.round().clip(0, 255).astype(np.uint8)).save(tmp_path / "drawing.png")
    pictures = inverted(tmp_path / "drawing.png", None, tmp_path / "out", inversion={"steps": 50, "tuning_steps": 30})
    assert psnr_db(pictures["inverted"], pictures["source"]) > 32


def test_a_photograph_is_fitted_dragged_and_left_alone_outside_the_mask(tmp_path):
    astronaut = REPOSITORY.parent / "shared" / "photos" / "astronaut.png"
    if not astronaut.exists():
        pytest.skip(f"{astronaut} is not there: photographs of others are not part of this project")
    edit = {"points": [{"handle": [229, 113], "target": [221, 113]}], "movable": {"shapes": [{"circle": [227, 106, 50]}]}}
    pictures = inverted(astronaut, [150, 20, 310, 180], tmp_path, **edit)
    found = psnr_db(pictures["inverted"], pictures["source"])
    trajectory = json.loads((tmp_path / "trajectory.json").read_text())
    y, x = np.mgrid[:128, :128]
    fixed = np.hypot(x - (227 - 150) / 1.25, y - (106 - 20) / 1.25) > 50 / 1.25 + 1
    outside = [psnr_db(pictures[name][fixed], pictures["source"][fixed]) for name in ("inverted", "result")]
    assert (found > 25, trajectory["stop_reason"]) == (True, "reached")
    assert outside[1] > outside[0] - 1.5


def psnr_db(one, other):
    return 10 * np.log10(255**2 / np.square(one - other).mean())
