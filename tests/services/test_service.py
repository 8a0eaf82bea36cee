"""The whole service as processes, as `dragqueue up` and `dragqueue demo` run it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from dragqueue_client import Client, RequestRefused

from embedded.errors import StackError
from embedded.servers import free_port, speaks_http
from embedded.service import prepare, running_service
from tests.services.jobs import DOCUMENT

LIMIT_S = 60


def test_an_edit_goes_over_http_through_all_processes_into_a_folder(stack, queue, tmp_path):
    with running_service(stack) as service, Client(service.url, service.key) as client:
        job = client.submit(DOCUMENT | {"movable": {"shapes": [{"circle": [15, 11, 9]}]}})
        assert client.wait(job.id, timeout_s=LIMIT_S).succeeded
        paths = list(client.download(job.id, tmp_path))
        with pytest.raises(RequestRefused, match="points: List should have at most 64 items"):
            client.submit(DOCUMENT | {"points": DOCUMENT["points"] * 65})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert {str(path.relative_to(tmp_path)) for path in paths} == set(manifest["artifacts"]) | {"manifest.json"}
    for name, artifact in manifest["artifacts"].items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == artifact["sha256"]


def test_a_database_that_is_away_is_one_sentence(settings):
    away = settings.model_copy(update={"database_url": "postgresql+psycopg://app@127.0.0.1:9/app"})
    with pytest.raises(StackError, match=r"^the service cannot be prepared: [^\n]+$"):
        prepare(away)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_up_leaves_no_process_behind(stack, tmp_path, number):
    """The servers are given; what `up` starts itself must end with it, the workers' children included."""
    log = tmp_path / "log"
    options = ["--workers", "2", "--port", str(free_port()), "--state", tmp_path / "state"]
    command = [sys.executable, "-P", "-m", "cli.main", "up", *options]
    ignore_sigint = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]  # as shells do with what they start in the background
    with log.open("w") as output:
        up = subprocess.Popen([*ignore_sigint, *command], env=stack.environment, stderr=output)
    wait_until(lambda: "Dragqueue serves" in log.read_text())
    wait_until(lambda: len(family(up.pid)) >= 6)  # api, reconciler, two workers, a child each
    processes = family(up.pid)
    os.kill(up.pid, number)
    up.wait(LIMIT_S)
    wait_until(lambda: not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes))


def test_up_starts_its_processes_again_and_ends_when_one_ends_too_often(stack, tmp_path):
    log, port = tmp_path / "log", free_port()
    options = ["--port", str(port), "--state", tmp_path / "state"]
    command = [sys.executable, "-P", "-m", "cli.main", "up", *options]
    with log.open("w") as output:
        up = subprocess.Popen(command, env=stack.environment, stderr=output)
    wait_until(lambda: "Dragqueue serves" in log.read_text())
    for name in ("api", "worker", "reconciler"):
        kill_and_await_another(up.pid, name)
    wait_until(lambda: speaks_http(f"http://127.0.0.1:{port}/healthz"))
    for _ in range(2):
        kill_and_await_another(up.pid, "api")
    part(up.pid, "api").kill()
    assert up.wait(LIMIT_S) == 1
    printed = log.read_text()
    assert [printed.count(f"{name} ended with exit code -9 and is") for name in ("api", "worker-0", "reconciler")] == [3, 1, 1]
    assert f"dragqueue: api ended with exit code -9; its log is {tmp_path / 'state/logs/api.log'}" in printed
    assert "Traceback" not in printed


def part(pid: int, name: str) -> psutil.Process | None:
    """The process that `up` has started for a part of the service."""
    for process in psutil.Process(pid).children():
        with suppress(psutil.NoSuchProcess):  # or a zombie
            if process.cmdline()[4:5] == [name]:
                return process
    return None


def kill_and_await_another(pid: int, name: str) -> None:
    killed = part(pid, name)
    killed.kill()
    wait_until(lambda: (now := part(pid, name)) is not None and now.pid != killed.pid)


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def wait_until(true) -> None:
    until = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_second_service_on_the_port_is_refused(stack, tmp_path):
    with running_service(stack) as service:
        url = service.url
        port = int(url.rpartition(":")[2])
        with pytest.raises(StackError, match=f"something answers on {url} already"), running_service(stack, port=port):
            pass
    assert Path(stack.logs / "api.log").exists()
