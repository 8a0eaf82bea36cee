"""A client that others make of the OpenAPI document alone: nothing of ours stands between it and the service."""

import time
from uuid import uuid4

import httpx2
import pytest
from aiopenapi3 import OpenAPI
from aiopenapi3.errors import HTTPClientError
from aiopenapi3.plugin import Document

LIMIT_S = 120
ENDED = ("succeeded", "failed", "canceled", "expired")
EDIT = {
    "model": "tiny",
    "source": {"seed": 3},
    "points": [{"handle": [10, 10], "target": [20, 12]}],
    "drag": {"max_iterations": 3},
    "metadata": {"order": "A-17"},
}


class Restated(Document):
    """What OpenAPI 3.1 allows and aiopenapi3 0.11 does not know: the default server, prefixItems, objects of anything."""

    def parsed(self, ctx):
        ctx.document.setdefault("servers", [{"url": "/"}])
        self.restate(ctx.document)
        return ctx

    def restate(self, part):
        if isinstance(part, dict) and "prefixItems" in part:
            part["items"] = part["prefixItems"][0]
        if isinstance(part, dict) and part.get("additionalProperties") is True:
            del part["type"], part["additionalProperties"]
        for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
            self.restate(inner)


@pytest.fixture
def api(service):
    api = OpenAPI.load_sync(f"{service.url}/openapi.json", session_factory=httpx2.Client, plugins=[Restated()])
    api.authenticate(HTTPBearer=service.key)
    return api


def types(api, name):
    return api.components.schemas[name].get_type()


def submit(api, key, **change):
    job = types(api, "JobSpec").model_validate(EDIT | change)
    said = job.model_dump(mode="json", exclude_unset=True)
    return api._.jobs_submit(data=said, parameters={"idempotency-key": key})


def at_end(api, job):
    until = time.monotonic() + LIMIT_S
    while job.state not in ENDED:
        assert time.monotonic() < until
        time.sleep(0.1)
        job = api._.jobs_get(parameters={"job_id": str(job.id)})
    return job


def test_it_submits_polls_lists_cancels_and_is_told_of_errors_in_types_of_its_own(api):
    job = submit(api, "order 1")
    assert submit(api, "order 1").id == job.id
    assert (type(job), at_end(api, job).state) == (types(api, "JobView"), "succeeded")
    listed = api._.jobs_artifacts(parameters={"job_id": str(job.id)})
    assert {"result.png", "trajectory.json"} <= {artifact.name for artifact in listed.artifacts}
    other = submit(api, "order 2", model="slow", drag={"max_iterations": 1000, "stop_distance": 0.1})
    api._.jobs_cancel(parameters={"job_id": str(other.id)})
    assert at_end(api, other).state == "canceled"
    with pytest.raises(HTTPClientError) as refused:
        api._.jobs_get(parameters={"job_id": str(uuid4())})
    problem = types(api, "ProblemDocument").model_validate_json(refused.value.data)  # aiopenapi3 reads application/json alone
    assert (refused.value.status_code, problem.status, problem.code) == (404, 404, "job_not_found")
