"""Every command that measures the running service, once at its smallest size: what a figure was published with still runs."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.child_programs import checkout_environment, module_command
from benchmarks.soak_report import load_samples

COMMANDS = {
    "soak": ("benchmarks.soak", "--minutes", "0.2", "--load-only", "--out", "{out}"),  # too short to say what leaks
    "scale": ("cli.main", "bench", "scale", "--jobs", "2", "--workers", "1", "--claim-tenants", "1", "--claim-rows", "20000",
              "--claim-seconds", "0.1", "--delays", "1", "--out", "{out}/scale.json"),
    "job": ("cli.main", "bench", "job", "--count", "1", "--iterations", "5"),
    "api": ("cli.main", "bench", "api", "--seconds", "1", "--rounds", "1", "--round-seconds", "0.5", "--changes", "2"),
    "cancel": ("cli.main", "bench", "cancel", "--count", "2"),
    "bulk": ("cli.main", "bench", "bulk", "--jobs", "1", "--slots", "1", "--presets", "fast"),
}  # fmt: skip
AT_ONCE = 3  # each mostly waits for servers that start


@dataclass(frozen=True)
class Finished:
    """A program that has ended, and the folder it wrote into."""

    process: subprocess.CompletedProcess[str]
    out: Path


def run(arguments, out):
    """Run a program of the checkout in a process of its own, with one thread where it computes."""
    environment = checkout_environment() | {"DRAGQUEUE_THREADS": "1", "OMP_NUM_THREADS": "1"}
    module, *rest = (argument.format(out=out) for argument in arguments)
    process = subprocess.run(module_command(module, *rest), check=False, capture_output=True, text=True, env=environment)
    return Finished(process, out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Every command beside others, each on servers of its own; by name, to be waited for."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {name: pool.submit(run, command, tmp_path_factory.mktemp(name)) for name, command in COMMANDS.items()}


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"soak"}))
def test_a_bench_measures_at_its_smallest_size(finished, name):
    process = finished[name].result().process
    assert process.returncode == 0, process.stderr


def test_bench_scale_writes_the_figures_of_all_parts(finished):
    found = json.loads((finished["scale"].result().out / "scale.json").read_text())
    assert {part: len(runs) for part, runs in found.items()} == {"throughput": 1, "claims": 2, "delay": 1}
    (run,) = found["throughput"]
    assert (run["workers"], run["jobs"], run["not_once"], run["incomplete"]) == (1, 2, 0, 0)
    assert [(rate["twice"], rate["empty"]) for rate in found["claims"]] == [(0, 0), (0, 0)]


def test_a_soak_loads_the_service_without_trouble(finished):
    out = finished["soak"].result().out
    samples = load_samples(out)
    assert {"api", "worker parent", "postgres", "valkey", "rclone"} <= samples[-1].processes.keys()
    assert samples[-1].counts["jobs"] > 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["tally"]["troubles"], summary["replaced"]) == ([], [])
