"""Every command that measures the running service, once at its smallest size: what a figure was published with still runs."""

import json
import subprocess

from benchmarks.child_programs import checkout_environment, module_command
from benchmarks.soak_report import load_samples


def run_program(module, *arguments):
    """Run a program of the checkout in a process of its own, with one thread where it computes; return what it did."""
    environment = checkout_environment() | {"DRAGQUEUE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = module_command(module, *map(str, arguments))
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)


def run_bench(*arguments):
    done = run_program("cli.main", "bench", *arguments)
    assert done.returncode == 0, done.stderr


def test_bench_cancel_measures_two_drags():
    run_bench("cancel", "--count", 2)


def test_bench_api_measures_submissions_polls_and_streams():
    run_bench("api", "--seconds", 1, "--rounds", 1, "--round-seconds", 0.5, "--changes", 2)


def test_bench_job_measures_a_job_beside_the_edit_alone():
    run_bench("job", "--count", 1, "--iterations", 5)


def test_bench_bulk_measures_an_edit_in_a_slot():
    run_bench("bulk", "--jobs", 1, "--slots", 1, "--presets", "fast")


def test_bench_scale_writes_the_figures_of_all_parts(tmp_path):
    small = ["--jobs", 2, "--workers", 1, "--claim-tenants", 1, "--claim-rows", 20_000, "--claim-seconds", 0.1, "--delays", 1]
    run_bench("scale", *small, "--out", tmp_path / "scale.json")
    found = json.loads((tmp_path / "scale.json").read_text())
    assert {part: len(runs) for part, runs in found.items()} == {"throughput": 1, "claims": 2, "delay": 1}
    (run,) = found["throughput"]
    assert (run["workers"], run["jobs"], run["not_once"], run["incomplete"]) == (1, 2, 0, 0)
    assert [(rate["twice"], rate["empty"]) for rate in found["claims"]] == [(0, 0), (0, 0)]


def test_a_soak_loads_the_service_without_trouble(tmp_path):
    run_program("benchmarks.soak", "--minutes", 0.2, "--load-only", "--out", tmp_path)  # too short to say what leaks
    samples = load_samples(tmp_path)
    assert {"api", "worker parent", "postgres", "valkey", "rclone"} <= samples[-1].processes.keys()
    assert samples[-1].counts["jobs"] > 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["tally"]["troubles"], summary["replaced"]) == ([], [])
