"""docker-compose.yml without Docker: its commands, with exactly the variables it sets, against servers of our own."""

import os
import re
import sys
from contextlib import ExitStack

import pytest
from dragqueue_client import Client
from ruamel.yaml import YAML

from embedded.keys import local_key
from embedded.processes import start
from embedded.servers import free_port, speaks_http
from jobs.settings import REPOSITORY
from tests.services.jobs import DOCUMENT

LIMIT_S = 60
SERVERS = {"postgres", "valkey", "minio"}


@pytest.fixture(scope="module")
def compose():
    return YAML(typ="safe").load(REPOSITORY / "docker-compose.yml")["services"]


def test_secrets_have_no_defaults():
    text = (REPOSITORY / "docker-compose.yml").read_text()
    assert not re.findall(r"\$\{[A-Z_]*(?:PASSWORD|SECRET|ACCESS_KEY)[A-Z_]*(?:\}|:-)", text)


def test_every_image_is_pinned_and_every_server_has_a_health_check(compose):
    for name, service in compose.items():
        assert name not in SERVERS or (re.search(r":\S*\d", service["image"]) and service["healthcheck"]["test"])


def test_the_images_hold_what_the_commands_need():
    """Every package of the project is copied, and every base is pinned."""
    text = (REPOSITORY / "Dockerfile").read_text()
    copied = set(re.findall(r"^COPY (\w+) \1$", text, re.MULTILINE))
    assert {"api", "checkpoints", "cli", "client", "embedded", "engine", "jobs", "migrations", "worker"} == copied
    assert re.search(r"^FROM python:\d+\.\d+\.\d+-slim", text, re.MULTILINE)


def variables(service, stack) -> dict[str, str]:
    """What compose would set, with our servers' addresses in place of the containers' names."""
    ours = {name: stack.environment[name] for name in service["environment"] if name in stack.environment}
    fixed = {"DRAGQUEUE_S3_PUBLIC_ENDPOINT": stack.environment["DRAGQUEUE_S3_ENDPOINT"]}
    rest = {name: value for name, value in service["environment"].items() if name not in ours | fixed and "${" not in value}
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent"} | rest | ours | fixed


def test_the_composed_commands_carry_a_job_through(compose, stack, queue, tmp_path):
    port = free_port()
    with ExitStack() as cleanup:
        (tmp_path / "scratch").mkdir()

        def run(name, *arguments):
            environment = variables(compose[name], stack) | {"DRAGQUEUE_CHECKPOINTS": stack.environment["DRAGQUEUE_CHECKPOINTS"]}
            if "TMPDIR" in environment:
                environment["TMPDIR"] = str(tmp_path / "scratch")
            command = compose[name].get("command", [name])
            program = [sys.executable, "-P", "-m", "cli.main", *command, *arguments]
            child = start(name, program, log=tmp_path / name, environment=environment)
            cleanup.callback(child.stop)
            return child

        assert run("migrate").process.wait(LIMIT_S) == 0
        api = run("api", "--port", str(port))
        run("worker")
        run("reconciler")
        url = f"http://127.0.0.1:{port}"
        api.wait_until(lambda: speaks_http(f"{url}/healthz"), LIMIT_S)
        with Client(url, local_key(stack)) as client:
            job = client.submit(DOCUMENT)
            assert client.wait(job.id, timeout_s=LIMIT_S).succeeded
            paths = list(client.download(job.id, tmp_path / "out"))
    assert tmp_path / "out" / "result.png" in paths
