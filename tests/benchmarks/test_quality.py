import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from benchmarks.faces.detector import detect, load_detector
from benchmarks.faces.factors import Z_DIM, factors_of
from benchmarks.faces.renderer import render
from benchmarks.quality.bootstrap import interval, paired
from benchmarks.quality.cases import Case, background_cases, find_correspondences, landmark_cases, pair_cases
from benchmarks.quality.inversion import PictureInverter, image, picture_cases
from benchmarks.quality.methods import EditedCase, block_matching, drag_method, no_edit, service_options, without_tracking
from benchmarks.quality.metrics import mse, psnr, ssim
from benchmarks.quality.report import summarize
from benchmarks.quality.rulers import FeatureRuler, LandmarkRuler
from benchmarks.quality.runs import Measurement, MeasurementFile
from benchmarks.quality.studies import StudyContext, comparison_methods, distances, landmarks
from cli.main import app
from jobs.models.manifest import ModelManifest
from jobs.settings import REPOSITORY
from tests.generators import tiny_generator
from worker.edit.engine_setup import open_generator


@pytest.fixture(scope="module")
def model():
    return ModelManifest.load(REPOSITORY / "checkpoints").get("demo-faces")


@pytest.fixture(scope="module")
def ruler(model):
    return LandmarkRuler(open_generator(ModelManifest.load(REPOSITORY / "checkpoints"), model, torch.device("cpu")))


def drawings(count, seed=0, **options):
    return render(factors_of(torch.randn(count, Z_DIM, generator=torch.Generator().manual_seed(seed))), 128, **options)


def measurement(**changes):
    return Measurement(group="1 point", row="default", case=0, iterations=1, stop_reason="reached", seconds=0.1, **changes)


class TestDetector:
    def test_it_finds_landmarks_of_drawings_it_has_not_seen_within_half_a_pixel(self):
        picture = drawings(32, seed=11)
        assert (detect(load_detector(), picture.images) - picture.landmarks).norm(dim=2).mean() < 0.5

    def test_it_reads_pictures_of_other_sizes_in_their_own_pixels(self):
        z = torch.randn(4, Z_DIM, generator=torch.Generator().manual_seed(12))
        picture = render(factors_of(z), 256)
        assert (detect(load_detector(), picture.images) - picture.landmarks).norm(dim=2).mean() < 1.5


class TestBootstrap:
    def test_the_interval_holds_the_mean_and_narrows_with_more_cases(self):
        values = np.random.RandomState(0).randn(400).tolist()
        few, many = interval(values[:20]), interval(values)
        assert many.low < np.mean(values) < many.high
        assert many.high - many.low < 0.5 * (few.high - few.low)

    def test_pairs_show_a_change_that_is_small_beside_the_spread(self):
        before = (10 * np.random.RandomState(0).randn(100)).tolist()
        assert paired(before, [value - 0.1 for value in before]).high < 0


class TestCases:
    def test_case_k_is_the_same_in_a_longer_table(self, ruler):
        short, long = (list(landmark_cases(ruler, 0.7, count, 5, 3)) for count in (1, 2))
        np.testing.assert_array_equal(short[0].targets, long[0].targets)

    def test_fewer_points_are_the_first_of_more(self, ruler):
        (one,), (five,) = (landmark_cases(ruler, 0.7, 1, points, 3) for points in (1, 5))
        np.testing.assert_array_equal(one.handles, five.handles[:1])

    def test_background_targets_lie_in_their_circles(self, ruler):
        for case in background_cases(ruler, 0.7, 4, 0):
            x, y, radius = case.circle
            assert np.hypot(*(case.targets[0] - (x, y))) < radius
            assert case.index % 3 or radius <= 0.15 * 128

    def test_a_picture_corresponds_to_itself(self):
        picture = drawings(1, dense=True)
        twice = replace(picture, part=picture.part.repeat(2, 1, 1), coordinates=picture.coordinates.repeat(2, 1, 1, 1))
        here, there = find_correspondences(twice, 32, np.random.RandomState(0))
        np.testing.assert_allclose(here, there, atol=1e-6)

    def test_corresponding_points_of_a_perturbed_face_look_alike(self, ruler):
        (case,) = pair_cases(ruler.generator, 0.7, 1, 5)
        start, goal = (ruler.generator.images(w)[0] for w in (case.start, case.goal))
        colors = [image[:, points.round().astype(int)[:, 1], points.round().astype(int)[:, 0]] for image, points in
                  ((start, case.handles), (goal, case.targets))]  # fmt: skip
        assert np.linalg.norm(case.targets - case.handles, axis=1).max() > 1
        assert (colors[0] - colors[1]).abs().median() < 0.08


class TestMethods:
    def test_rows_run_with_the_options_a_job_would_have(self, model):
        options = service_options(model, 5, max_iterations=7)
        assert (options.learning_rate, options.max_iterations) == (model.defaults.learning_rate, 7)

    def test_without_tracking_the_handles_are_believed_to_arrive(self, model, ruler):
        (case,) = landmark_cases(ruler, 0.7, 1, 1, 3)
        edited = drag_method("no tracking", model, without_tracking, max_iterations=100).run(ruler.generator, case)
        np.testing.assert_allclose(edited.handles, case.targets, atol=1.0)

    def test_block_matching_follows_a_high_contrast_point(self, model, ruler):
        cases = [case for case in landmark_cases(ruler, 0.7, 12, 28, 0)]
        pupil = replace(
            cases[0], handles=ruler.landmarks(cases[0].start)[:1], targets=ruler.landmarks(cases[0].start)[:1] + 6, labels=[0]
        )
        edited = drag_method("block matching", model, block_matching, max_iterations=4).run(ruler.generator, pupil)
        assert np.linalg.norm(ruler.landmarks(edited.w)[:1] - edited.handles) < 2

    def test_a_feature_ruler_finds_points_of_the_same_picture_where_they_are(self):
        generator = tiny_generator(64)
        w, points = generator.map(seed=1), np.array([[20.0, 30.0], [41.0, 12.0]])
        np.testing.assert_allclose(FeatureRuler(generator).locate(w, points, [], w), points, atol=1.0)


def test_more_steps_of_projection_come_nearer_to_a_drawing(ruler):
    (case,) = picture_cases(ruler, 0.7, 1, 0)
    inverter = PictureInverter(ruler.generator, None)
    few, more = (inverter.project(case, steps, warm=False) for steps in (1, 10))
    assert (few.iterations, more.iterations) == (1, 10)
    assert mse(image(ruler.generator, more.w), case.picture) < mse(image(ruler.generator, few.w), case.picture)


class TestMetrics:
    def test_equal_pictures(self):
        image = drawings(1).images
        assert (mse(image, image), psnr(0.0)) == (0.0, 100.0)
        assert ssim(image, image) == pytest.approx(1.0, abs=1e-5)

    def test_psnr_of_a_constant_difference(self):
        image = torch.zeros(1, 3, 16, 16)
        assert psnr(mse(image, image + 0.2)) == pytest.approx(20.0, abs=0.01)

    def test_noise_lowers_ssim_more_than_brightness(self):
        image = drawings(1).images
        noisy = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        assert ssim(image, noisy) < ssim(image, image + 0.1)


class TestMeasurements:
    def test_distances_are_told_apart(self, ruler):
        case = Case(
            index=0, start=torch.zeros(1, 1, 1), handles=np.zeros((2, 2)), targets=np.array([[3.0, 4.0], [0, 0]]), labels=[]
        )
        edited = EditedCase(
            w=case.start, handles=np.array([[3.0, 4.0], [0, 0]]), iterations=1, stop_reason="reached", seconds=0.0
        )
        found = distances(case, edited, np.zeros((2, 2)))
        assert found == {"true_px": 2.5, "worst_px": 5.0, "tracker_px": 0.0, "lost_percent": 50.0}

    def test_a_file_goes_on_after_a_line_that_was_cut_short(self, tmp_path):
        path = tmp_path / "landmarks.jsonl"
        MeasurementFile(path, {"seed": 0}).add(measurement(true_px=1.0))
        with path.open("a") as file:
            file.write('{"group": "1 po')
        MeasurementFile(path, {"seed": 0}).add(replace(measurement(true_px=2.0), case=1))
        assert [known.true_px for known in MeasurementFile(path, {"seed": 0}).known.values()] == [1.0, 2.0]

    def test_a_file_of_another_run_is_refused(self, tmp_path):
        MeasurementFile(tmp_path / "landmarks.jsonl", {"seed": 0})
        with pytest.raises(ValueError, match="holds another run"):
            MeasurementFile(tmp_path / "landmarks.jsonl", {"seed": 1})

    def test_a_line_sums_up_its_cases(self, model, ruler):
        context = StudyContext(ruler.generator, model, ruler)
        study = landmarks(context, 2, 2, 0, [1], comparison_methods(context))
        rows = [replace(measurement(true_px=px, worst_px=px, tracker_px=0.5), case=k) for k, px in enumerate((0.5, 2.5))]
        (line,) = summarize(study, rows)
        figures = {name: found.value for name, found in line.figures.items()}
        assert (figures["true_px"], figures["gap_px"], figures["within_1_percent"], figures["within_2_percent"]) == (
            1.5,
            1.0,
            50,
            50,
        )


def test_no_edit_changes_nothing(ruler):
    (case,) = landmark_cases(ruler, 0.7, 1, 1, 0)
    assert torch.equal(no_edit(ruler.generator, case).w, case.start)


def test_eval_writes_a_table_a_plot_and_a_sheet_and_does_not_run_twice(tmp_path):
    command = ["eval", "landmarks", "--pairs", "2", "--points", "1", "--out", str(tmp_path), "--rows"]
    assert CliRunner().invoke(app, [*command, "no edit,default"]).exit_code == 0
    names = {"landmarks.json", "landmarks.csv", "landmarks.png", "landmarks-sheet.png", "landmarks.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names
    measurements = (tmp_path / "landmarks.jsonl").read_bytes()
    lines = json.loads((tmp_path / "landmarks.json").read_text())["lines"]
    assert [(line["row"], line["cases"]) for line in lines] == [("no edit", 2), ("default", 2)]
    assert lines[1]["figures"]["true_px"]["value"] < lines[0]["figures"]["true_px"]["value"]
    assert CliRunner().invoke(app, [*command, "no edit"]).exit_code == 0
    assert (tmp_path / "landmarks.jsonl").read_bytes() == measurements
