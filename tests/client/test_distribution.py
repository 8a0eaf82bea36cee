"""dragqueue-client as a wheel, in an environment with its declared dependencies and nothing else."""

import json
import os
import subprocess
import zipfile
from uuid import UUID

import pytest

from tests.client.test_client import JOB
from tests.wheels import REPOSITORY, build_wheel, copy_dependencies, make_environment

OURS = ["api", "benchmarks", "checkpoints", "cli", "embedded", "engine", "jobs", "migrations", "worker"]
PROGRAM = """
import importlib.util, json, sys
from dragqueue_client import Client, RequestRefused
url, names = sys.argv[1], sys.argv[2:]
with Client(url, "dq_1_2") as client:
    job = client.submit({"model": "m"})
    try:
        client.get(job.id)
    except RequestRefused as error:
        code = error.code
print(json.dumps({"job": str(job.id), "code": code, "ours": [name for name in names if importlib.util.find_spec(name)]}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build_wheel(REPOSITORY / "client", tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_the_typed_package_its_licence_and_nothing_else(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {"dragqueue_client", "dragqueue_client-0.1.0.dist-info"}
    assert {"dragqueue_client/py.typed", "dragqueue_client-0.1.0.dist-info/licenses/LICENSE"} <= names


def test_the_client_works_where_nothing_else_of_ours_is_installed(wheel, serve, tmp_path):
    programs, packages = make_environment(tmp_path / "environment", wheel)
    copy_dependencies("dragqueue_client", packages)
    (tmp_path / "empty").mkdir()
    url, requests = serve((202, JOB), (404, {"code": "job_not_found", "detail": "there is no such job"}))
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [programs / "python", "-c", PROGRAM, url, *OURS]
    done = subprocess.run(command, cwd=tmp_path / "empty", env=outside, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"job": str(UUID(int=1)), "code": "job_not_found", "ours": []}
    assert [request for request, _ in requests] == ["POST /v1/jobs", f"GET /v1/jobs/{UUID(int=1)}"]
