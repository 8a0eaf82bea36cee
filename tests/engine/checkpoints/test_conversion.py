"""The child that converts a checkpoint: whatever becomes of it, its parent says so in a sentence and nothing is left."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from engine.checkpoints import conversion
from engine.checkpoints.canonical import write_networks
from engine.checkpoints.conversion import convert_checkpoint, workspace
from engine.checkpoints.layouts import read_generator_file
from engine.errors import CheckpointDamaged, CheckpointMissing
from jobs.settings import REPOSITORY
from tests.generators import DATA

NVIDIA = DATA / "sg2-64-nvidia.pkl"


def converted(file, folder):
    with workspace(folder) as made:
        *steps, last = convert_checkpoint(file, made / "a.safetensors", made / "b.safetensors")
        files = [path.read_bytes() for path in (last.conversion.generator, last.conversion.discriminator) if path]
        return [step.phase for step in steps], last.conversion, files


def test_a_child_writes_what_this_process_would(tmp_path):
    phases, found, files = converted(NVIDIA, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert phases == ["reading", "converting"]
    assert (found.layout, found.config.resolution) == ("nvidia", 64)
    assert 0 < found.peak_bytes < 2**30
    here = [tmp_path / "here", tmp_path / "beside"]
    write_networks(read_generator_file(NVIDIA), *here)
    assert files == [path.read_bytes() for path in here]


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [("BASE_CPU_S", 0, "more than 0 s of CPU time"), ("BASE_MEMORY", 10 * 2**20, "more memory than it may|ended with status")],
)
def test_a_child_over_its_limit_is_said_and_leaves_nothing(tmp_path, monkeypatch, limit, value, reason):
    monkeypatch.setattr(conversion, limit, value)
    monkeypatch.setattr(conversion, "MEMORY_PER_BYTE", 0 if limit == "BASE_MEMORY" else 600)
    with pytest.raises(CheckpointDamaged, match=reason):
        converted(NVIDIA, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(CheckpointMissing, match=r"there is no file nowhere\.pkl"):
        converted(tmp_path / "nowhere.pkl", tmp_path)


def test_a_child_gets_no_secrets_and_no_torch(tmp_path, monkeypatch):
    monkeypatch.setenv("DRAGQUEUE_S3_SECRET_KEY", "secret")
    steps = convert_checkpoint(NVIDIA, tmp_path / "a", tmp_path / "b")
    next(steps)
    [child] = [each for each in children(os.getpid()) if b"conversion_child" in (Path("/proc") / each / "cmdline").read_bytes()]
    assert b"secret" not in (Path("/proc") / child / "environ").read_bytes()
    assert "torch" not in (Path("/proc") / child / "maps").read_text()
    steps.close()
    assert not Path("/proc", child).exists()


def test_a_child_ends_with_its_parent_and_the_next_import_tidies_up(tmp_path):
    program = (
        "import time; from pathlib import Path; from engine.checkpoints.conversion import *\n"
        f"with workspace(Path({str(tmp_path)!r})) as made:\n"
        f"    steps = convert_checkpoint(Path({str(NVIDIA)!r}), made / 'a', made / 'b'); next(steps)\n"
        "    print('begun', flush=True)\n"
        "    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"begun\n"
        begun = children(parent.pid)
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while any(Path("/proc", child).exists() for child in begun) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(Path("/proc", child).exists() for child in begun)
    assert len(list(tmp_path.iterdir())) == 1  # nobody was there to remove it
    with workspace(tmp_path) as made:
        assert list(tmp_path.iterdir()) == [made]
        with workspace(tmp_path) as other:  # of an import beside this one
            assert {made, other} == set(tmp_path.iterdir())
    assert list(tmp_path.iterdir()) == []


def children(pid):
    return [child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()]
