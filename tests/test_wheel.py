"""The service as an installed wheel, in folders that have nothing to do with a checkout."""

import os
import re
import signal
import subprocess
import time
import zipfile
from io import BytesIO

import pytest
from dragqueue_client import Client
from PIL import Image

from embedded.servers import free_port
from tests.services.conftest import open_to_nobody
from tests.services.test_stack import clean_environment
from tests.wheels import DEPENDENCIES, REPOSITORY, build_wheel, make_environment

PACKAGES = {"api", "checkpoints", "cli", "embedded", "engine", "jobs", "migrations", "worker"}
MODEL = {"manifest.toml", "demo-faces.safetensors", "demo-faces.encoder.safetensors"}
EDIT = {"model": "demo-faces", "points": [{"handle": [75, 80], "target": [59, 80]}], "drag": {"max_iterations": 2}}
LIMIT_S = 90
DECOY = "from pathlib import Path; Path({marker!r}).touch(); raise SystemExit('a decoy was imported')\n"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(REPOSITORY, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def dragqueue(wheel, tmp_path_factory):
    """The command of an environment that has the wheels, our dependencies and no checkout."""
    folder = tmp_path_factory.mktemp("installed")
    client = build_wheel(REPOSITORY / "client", folder / "client")
    programs, packages = make_environment(folder / "environment", wheel, client)
    (packages / "dependencies.pth").write_text(f"{DEPENDENCIES}\n")  # an editable install of ours there is not seen by this
    return programs / "dragqueue"


@pytest.fixture
def environment(dragqueue):
    """Without what leads to the checkout; rclone is a command of the environment that runs the tests."""
    outside = {name: value for name, value in clean_environment().items() if not name.startswith("PYTHON")}
    return outside | {"COLUMNS": "200", "PATH": f"{dragqueue.parent}:{DEPENDENCIES.parents[2] / 'bin'}:{os.environ['PATH']}"}


@pytest.fixture
def folder(tmp_path):
    """An empty folder."""
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


def test_the_wheel_is_private_and_holds_the_packages_and_the_demo_model_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert {name.partition("/")[0] for name in names} == PACKAGES | {"dragqueue-0.1.0.dist-info"}
        assert {name.removeprefix("checkpoints/") for name in names if name.startswith("checkpoints/")} == MODEL
        assert "Classifier: Private :: Do Not Upload" in archive.read("dragqueue-0.1.0.dist-info/METADATA").decode()


def test_offline_commands_work_in_an_empty_folder(dragqueue, environment, folder):
    listed = subprocess.run([dragqueue, "models", "list"], cwd=folder, env=environment, capture_output=True, text=True)
    assert (listed.returncode, "demo-faces" in listed.stdout) == (0, True)
    command = [dragqueue, "render", "--seeds", "0-1", "--out", "grid.png"]
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=True)
    with Image.open(folder / "grid.png") as grid:
        assert grid.size == (256, 128)
    assert [path.name for path in folder.iterdir()] == ["grid.png"]


@pytest.mark.parametrize("arguments", [["eval", "landmarks", "--out", "study"], ["bench", "import"]])
def test_measurements_say_that_they_need_a_checkout(dragqueue, environment, folder, arguments):
    done = subprocess.run([dragqueue, *arguments], cwd=folder, env=environment, capture_output=True, text=True)
    assert (done.returncode, "this command needs a checkout of the repository" in done.stderr) == (1, True)
    assert "Traceback" not in done.stderr


@pytest.fixture
def decoys(folder):
    """Packages of our names in the folder; a file beside it tells whether one was imported."""
    marker = folder.parent / "imported"
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(DECOY.format(marker=str(marker)))
    return marker


def test_up_serves_jobs_and_imports_nothing_from_the_folder_it_was_started_in(dragqueue, environment, folder, decoys, tmp_path):
    open_to_nobody(tmp_path)
    log = tmp_path / "log"
    command = [dragqueue, "up", "--state", tmp_path / "state", "--port", str(free_port())]
    with log.open("w") as output:
        up = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)
    try:
        url, key = wait_for_address(up, log)
        with Client(url, key) as client:
            seed = client.submit(EDIT | {"source": {"seed": 3}})
            photo = client.submit(EDIT | {"inversion": {"steps": 2, "tuning_steps": 0}}, image=photo_of(128))
            for job in (seed, photo):
                ended = client.wait(job.id, timeout_s=LIMIT_S)
                assert (ended.state, ended.error) == ("succeeded", None)
            assert tmp_path / "out" / "result.png" in list(client.download(photo.id, tmp_path / "out"))
    finally:
        up.send_signal(signal.SIGTERM)
        up.wait(LIMIT_S)
    assert not decoys.exists()


def wait_for_address(up, log):
    """The URL and the key that `dragqueue up` prints."""
    until = time.monotonic() + LIMIT_S
    while (printed := re.search(r"DRAGQUEUE_URL=(\S+) DRAGQUEUE_KEY=(\S+)", log.read_text())) is None:
        assert up.poll() is None, log.read_text()
        assert time.monotonic() < until
        time.sleep(0.1)
    return printed.groups()


def photo_of(size):
    file = BytesIO()
    Image.linear_gradient("L").resize((size, size)).convert("RGB").save(file, "PNG")
    return file.getvalue()
