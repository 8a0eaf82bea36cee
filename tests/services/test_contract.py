"""The OpenAPI document against the running API: what it says is what happens."""

import os
import subprocess
import sys
from pathlib import Path

from sqlalchemy import func, select

from api.openapi import JOB_EXAMPLE
from embedded.servers import free_port, speaks_http
from embedded.service import start_part
from jobs.models.manifest import ModelManifest
from jobs.settings import REPOSITORY
from jobs.spec.validation import check_submission
from jobs.states import JobState
from jobs.tables import Job

EXAMPLES = os.environ.get("DRAGQUEUE_CONTRACT_EXAMPLES", "5")  # of each operation and kind
LIMIT_S = 1800
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


def test_no_request_meets_a_defect_or_an_answer_that_the_contract_does_not_name(
    stack, queue, cleanup, api_key, sessions, tmp_path
):
    port = free_port()
    stack.environment["DRAGQUEUE_CHECKPOINTS"] = str(REPOSITORY / "checkpoints")
    stack.environment.update({"DRAGQUEUE_REQUESTS_PER_MINUTE": "1000000", "DRAGQUEUE_SUBMITS_PER_MINUTE": "1000000"})
    api = start_part(stack, "api", ["--port", str(port)], cleanup)
    url = f"http://127.0.0.1:{port}"
    api.wait_until(lambda: speaks_http(f"{url}/healthz"), 60)
    command = [
        Path(sys.executable).with_name("st"), "run", f"{url}/openapi.json", "--header", f"Authorization: Bearer {api_key}",
        "--checks", CHECKS, "--phases", "examples,coverage,fuzzing,stateful", "--max-examples", EXAMPLES, "--seed", "1",
        "--exclude-path-regex", "/events$", "--continue-on-failure", "--no-color", "--generation-database", ":memory:",
        "--request-timeout", "30", "--warnings", "off",
    ]  # fmt: skip
    hooks = os.environ | {"SCHEMATHESIS_HOOKS": "tests.services.contract_hooks", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, cwd=tmp_path, env=hooks, check=False)
    assert done.returncode == 0, done.stdout[-6000:]
    with sessions() as session:
        states = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
    assert min(states[JobState.QUEUED], states[JobState.CANCELED]) > 0  # the links were followed


def test_the_example_is_a_job_that_the_shipped_model_can_run():
    submission = check_submission(JOB_EXAMPLE, ModelManifest.load(REPOSITORY / "checkpoints"))
    assert submission.spec.movable is not None  # an empty mask would be refused
