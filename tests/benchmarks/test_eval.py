"""Every command that measures without servers, once at its smallest size: what a figure was published with still runs."""

import json
import shutil
import subprocess
from dataclasses import asdict

import pytest
from PIL import Image
from typer.testing import CliRunner

from benchmarks.child_programs import checkout_environment, module_command
from benchmarks.quality.methods import service_options
from benchmarks.quality.predictor import NAME
from benchmarks.quality.runs import MeasurementFile
from cli.main import app
from cli.quality import StudyProtocol
from jobs.models.manifest import ModelManifest
from jobs.settings import REPOSITORY

QUALITY = REPOSITORY / "docs" / "quality"
ROWS = {
    "pairs": ["no edit"],
    "ablation": ["learning_rate 0.05"],
    "mask": ["mask_weight 0"],
    "background": ["no mask"],
    "cycle": ["default"],
    "choices": ["fast"],
    "inversion": ["drag of the seed"],
}
SMALL = ["--pairs", "2", "--comparisons", "1"]


def run_command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)


def run_program(module, *arguments):
    command, environment = module_command(module, *map(str, arguments)), checkout_environment() | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def test_every_study_is_run_by_a_test():
    elsewhere = {"landmarks", "fidelity"}  # below, and in test_quality
    assert {protocol.value for protocol in StudyProtocol} == ROWS.keys() | elsewhere


@pytest.mark.parametrize(("study", "rows"), ROWS.items())
def test_a_study_measures_the_rows_that_are_wanted(tmp_path, study, rows):
    points = ["--points", "1"] if study == "choices" else []
    run_command("eval", study, *SMALL, *points, "--rows", ",".join(rows), "--out", tmp_path)
    lines = json.loads((tmp_path / f"{study}.json").read_text())["lines"]
    assert {line["row"] for line in lines} == set(rows)
    assert all(line["cases"] in (1, 2) and line["figures"] for line in lines)
    assert (tmp_path / f"{study}.csv").read_text().count("\n") == 1 + len(lines)


def test_fidelity_writes_its_figures(tmp_path):
    run_command("eval", "fidelity", "--pairs", "2", "--out", tmp_path)
    found, published = (json.loads((folder / "fidelity.json").read_text()) for folder in (tmp_path, QUALITY))
    assert (found.keys(), found["seeds"]) == (published.keys(), 2)


def test_the_published_predictor_answers_as_a_row_of_landmarks(tmp_path):
    shutil.copy(QUALITY / "predictor.safetensors", tmp_path)
    run_command("eval", "landmarks", *SMALL, "--points", "5", "--rows", NAME, "--out", tmp_path)
    (line,) = json.loads((tmp_path / "landmarks.json").read_text())["lines"]
    assert line["figures"]["true_px"]["value"] < 15


@pytest.mark.parametrize("path", sorted(QUALITY.glob("*.jsonl")), ids=lambda path: path.stem)
def test_published_measurements_answer_the_question_that_a_study_asks_today(tmp_path, path):
    model = ModelManifest.load(REPOSITORY / "checkpoints").get("demo-faces")
    question = {"protocol": path.stem, "model": model.name, "sha256": model.sha256, "seed": 0}
    question["options"] = asdict(service_options(model, 1))
    shutil.copy(path, tmp_path)
    assert MeasurementFile(tmp_path / path.name, question).known
    assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_agreement_compares_drags_alone_and_in_slots():
    found = json.loads(run_program("benchmarks.agreement", "--drags", 2, "--slots", 2, "--preset", "fast"))
    assert (found["drags"], found["slots"], found["agree_percent"]) == (2, 2, 100.0)


def test_the_sheet_of_edits_that_nobody_picked_is_drawn(tmp_path):
    run_program("benchmarks.quality.unselected", tmp_path / "seeds.png", "--seeds", 1)
    with Image.open(tmp_path / "seeds.png") as sheet:
        assert sheet.size == (256, 512)


def test_bench_import_measures_a_small_network():
    result = CliRunner().invoke(app, ["bench", "import", "--resolution", "64"])
    assert result.exit_code == 0, (result.output, result.exception)
    refused = CliRunner().invoke(app, ["bench", "import", "--resolution", "96"])
    assert "--resolution must be a power of 2" in str(refused.exception)


def test_bench_drag_writes_the_figures_of_both_programs(tmp_path):
    small = ["--resolutions", "64", "--masks", "none", "--rounds", "1", "--steps", "1", "--threads", "1"]
    run_command("bench", "drag", *small, "--out", tmp_path)
    found, published = (
        json.loads((folder / "drag-speed.json").read_text()) for folder in (tmp_path, REPOSITORY / "docs" / "performance")
    )
    assert found.keys() == published.keys()
    assert found["speeds"][0].keys() == published["speeds"][0].keys()
    assert [speed["case"]["way"] for speed in found["speeds"]] == ["official", "ours"]
