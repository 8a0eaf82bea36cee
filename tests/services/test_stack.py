"""The launcher itself."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import RedisError
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from embedded.errors import StackError
from embedded.stack import local_stack
from embedded.supervision import Supervisor
from jobs.database import make_sessions
from jobs.errors import StorageUnavailable
from jobs.queue.broker import Broker
from jobs.storage.objects import Storage
from tests.services.conftest import open_to_nobody

HOLD = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
from embedded.stack import local_stack
with local_stack() as stack:
    print(*(child.process.pid for child in stack.children), flush=True)
    time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def clean_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if not key.startswith("DRAGQUEUE_")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_no_server_outlives_its_launcher(number):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean_environment()
    ) as launcher:
        pids = [int(pid) for pid in launcher.stdout.readline().split()]
        assert len(pids) == 3
        assert all(map(alive, pids))
        launcher.send_signal(number)
        launcher.wait(20)
        until = time.monotonic() + 10
        while any(map(alive, pids)):
            assert time.monotonic() < until
            time.sleep(0.05)


def test_a_state_folder_keeps_its_data(tmp_path):
    open_to_nobody(tmp_path)
    state = tmp_path / "state"
    for expected in (None, b"kept"):
        with local_stack(state, clean_environment()) as stack:
            storage = Storage.from_settings(stack.settings())
            storage.ensure_bucket()
            if expected:
                assert storage.get("a") == expected
            storage.put("a", b"kept", "text/plain")


def test_servers_that_are_killed_are_started_again_on_their_data(tmp_path):
    open_to_nobody(tmp_path)
    said = []
    with local_stack(tmp_path / "state", clean_environment()) as stack:
        storage, sessions = Storage.from_settings(stack.settings()), make_sessions(stack.settings().database_url)
        storage.ensure_bucket()
        storage.put("a", b"kept", "text/plain")
        with sessions.begin() as session:
            session.execute(text("CREATE TABLE kept AS SELECT 1 AS number"))
        Broker(stack.settings().redis_url).redis.set("a", "kept")
        for child in stack.children:
            child.process.kill()
        supervisor, until = Supervisor(stack, said.append), time.monotonic() + 30
        while not answers(stack.settings()):
            supervisor.look()
            assert time.monotonic() < until
            time.sleep(0.1)
        with sessions() as session:
            assert session.scalar(text("SELECT number FROM kept")) == 1
        assert storage.get("a") == b"kept"
        assert Broker(stack.settings().redis_url).redis.get("a") == b"kept"
        sessions.kw["bind"].dispose()
    assert {line.split(" ended")[0] for line in said} == {"PostgreSQL", "Valkey", "rclone S3"}


def answers(settings) -> bool:
    sessions = make_sessions(settings.database_url)
    try:
        with sessions() as session:
            session.execute(text("SELECT 1"))
        Broker(settings.redis_url).check()
        Storage.from_settings(settings).get("a")
    except (OperationalError, RedisError, StorageUnavailable):
        return False
    finally:
        sessions.kw["bind"].dispose()
    return True


def test_a_state_folder_has_one_user(tmp_path, stack):
    """No server is started here: all URLs are given."""
    with (
        local_stack(tmp_path, stack.environment),
        pytest.raises(StackError, match="another dragqueue uses"),
        local_stack(tmp_path, stack.environment),
    ):
        pass


def test_a_server_whose_url_is_given_is_not_started(stack):
    with local_stack(environment=stack.environment) as other:
        assert other.children == []


def demo_without_servers(environment: dict[str, str]) -> str:
    """What the demo prints when it fails."""
    code = "from cli.main import main; import sys; sys.argv = ['dragqueue', 'demo']; main()"
    environment = clean_environment() | environment
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, "Traceback" in run.stderr) == (1, False)
    return run.stderr


def test_a_server_that_cannot_be_started_is_one_sentence_with_its_log():
    printed = demo_without_servers({"DRAGQUEUE_POSTGRES_BIN": "/nonexistent"})
    log = Path(re.search(r"initdb cannot be started: .*; its log is (\S+)", printed)[1])
    assert "No such file" in log.read_text()


def test_a_server_that_fails_is_one_sentence_with_its_log(tmp_path):
    open_to_nobody(tmp_path)
    initdb = tmp_path / "initdb"
    initdb.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
    initdb.chmod(0o755)
    printed = demo_without_servers({"DRAGQUEUE_POSTGRES_BIN": str(tmp_path)})
    log = Path(re.search(r"initdb ended with exit code 3; its log is (\S+)", printed)[1])
    assert log.read_text() == "the disk is on fire\n"


def test_settings_that_are_wrong_are_one_sentence():
    assert "DRAGQUEUE_LEASE_S: Input should be a valid number" in demo_without_servers({"DRAGQUEUE_LEASE_S": "abc"})


def test_an_initdb_that_was_interrupted_is_begun_again(tmp_path):
    open_to_nobody(tmp_path)
    (tmp_path / "state" / "postgres.part").mkdir(parents=True)
    (tmp_path / "state" / "postgres.part" / "PG_VERSION").write_text("16")
    with local_stack(tmp_path / "state", clean_environment()) as stack:
        stack.check()
