"""Real worker processes."""

import hashlib
import json
import os
import signal
from pathlib import Path

import pytest

from embedded.service import start_part, start_worker
from jobs.tables import Worker
from tests.services.jobs import DOCUMENT, SLOW
from tests.services.watching import LIMIT_S, alive, children_of, download, dragging, ended, wait_until

ARTIFACTS = {"animation.mp4", "latent.safetensors", "manifest.json", "overlay.png", "result.png", "source.png", "trajectory.json"}


def test_a_job_goes_through_a_worker_and_its_artifacts_come_back(client, stack, cleanup):
    worker = start_worker(stack, cleanup)
    job = client.post("/v1/jobs", json=DOCUMENT).json()
    done = ended(client, job)
    assert (done["state"], done["attempt"], done["error"]) == ("succeeded", 1, None)
    assert done["stop_reason"] in ("reached", "max_iterations")
    artifacts = client.get(f"/v1/jobs/{job['id']}", params={"expand": "artifacts"}).json()["artifacts"]
    assert {artifact["name"] for artifact in artifacts} == ARTIFACTS
    frames = client.get(f"/v1/jobs/{job['id']}/frames").json()["frames"]
    for artifact in artifacts + frames:
        data = download(client, job, artifact["name"])
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (artifact["sha256"], artifact["size_bytes"])
    story = json.loads(download(client, job, "trajectory.json"))
    assert [frame["name"] for frame in frames] == [f"frames/{step['iteration']:05d}.webp" for step in story["steps"]]
    assert "libtorch" not in Path(f"/proc/{worker.process.pid}/maps").read_text()
    assert any("libtorch" in Path(f"/proc/{child}/maps").read_text() for child in children_of(worker.process.pid))


@pytest.mark.parametrize(("model", "code"), [("missing", "checkpoint_missing"), ("damaged", "checkpoint_damaged")])
def test_a_bad_checkpoint_fails_the_job_and_the_worker_lives(client, stack, cleanup, model, code):
    worker = start_worker(stack, cleanup)
    bad = client.post("/v1/jobs", json=DOCUMENT | {"model": model}).json()
    good = client.post("/v1/jobs", json=DOCUMENT).json()
    failed = ended(client, bad)
    assert (failed["state"], failed["error"]["code"]) == ("failed", code)
    assert f"{model}.safetensors" in failed["error"]["message"]
    assert ended(client, good)["state"] == "succeeded"
    worker.check()


def test_a_running_job_shows_its_points_and_can_be_canceled(client, stack, cleanup):
    start_worker(stack, cleanup)
    job = client.post("/v1/jobs", json=SLOW).json()
    progress = dragging(client, job)["progress"]
    assert (progress["phase"], progress["max_iterations"], len(progress["handles"])) == ("drag", 40, 1)
    assert client.post(f"/v1/jobs/{job['id']}/cancel").json()["cancel_requested"]
    assert ended(client, job)["state"] == "canceled"


def test_a_job_that_takes_too_long_fails_and_keeps_its_frames(client, stack, cleanup):
    start_worker(stack, cleanup)
    job = client.post("/v1/jobs", json=SLOW | {"run_timeout_s": 1}).json()
    failed = ended(client, job)
    assert (failed["state"], failed["error"]["code"], failed["error"]["retryable"]) == ("failed", "timeout", True)
    assert client.get(f"/v1/jobs/{job['id']}/frames").json()["frames"] != []


def test_a_worker_killed_mid_drag_leaves_its_job_to_another(client, stack, cleanup):
    first = start_worker(stack, cleanup, 1)
    start_part(stack, "reconciler", [], cleanup)
    job = client.post("/v1/jobs", json=SLOW).json()
    dragging(client, job)
    child = children_of(first.process.pid)[0]
    first.process.kill()
    first.process.wait()
    wait_until(lambda: not alive(child), "end of the killed worker's child")
    start_worker(stack, cleanup, 2)
    done = ended(client, job)
    assert (done["state"], done["attempt"]) == ("succeeded", 2)
    assert download(client, job, "result.png").startswith(b"\x89PNG")


@pytest.mark.parametrize(("whole_group", "replaced"), [(False, False), (True, False), (False, True)])
def test_a_worker_that_is_asked_to_end_hands_its_job_back(client, stack, cleanup, sessions, whole_group, replaced):
    first = start_worker(stack, cleanup, 1)
    if replaced:
        replace_child(first, sessions)
    job = client.post("/v1/jobs", json=SLOW).json()
    dragging(client, job)
    if whole_group:
        os.killpg(first.process.pid, signal.SIGTERM)
    else:
        first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(LIMIT_S) == 0
    waiting = client.get(f"/v1/jobs/{job['id']}").json()
    assert (waiting["state"], waiting["attempt"]) == ("queued", 1)
    start_worker(stack, cleanup, 2)
    done = ended(client, job)
    assert (done["state"], done["attempt"]) == ("succeeded", 2)


def replace_child(worker, sessions):
    """Kill the process that computes and wait until Celery has another ready."""

    def known():
        with sessions() as session:
            return {int(row.name.rpartition(":")[2]) for row in session.query(Worker).all()}

    (before,) = wait_until(known, "worker in the table")
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: known() - {before}, "another child")


def test_a_lost_message_is_sent_again(client, stack, cleanup, queue):
    job = client.post("/v1/jobs", json=DOCUMENT).json()
    queue.redis.flushall()
    start_worker(stack, cleanup)
    start_part(stack, "reconciler", [], cleanup)
    assert ended(client, job)["state"] == "succeeded"


def test_a_worker_is_known_before_its_first_job(stack, sessions, cleanup):
    worker = start_worker(stack, cleanup)

    def known():
        with sessions() as session:
            return [row.name for row in session.query(Worker).all()]

    (name,) = wait_until(known, "worker in the table")
    assert int(name.rpartition(":")[2]) in children_of(worker.process.pid)


def test_messages_without_jobs_do_nothing(client, stack, cleanup, queue):
    for _ in range(5):
        queue.send_wake_up("default")
    start_worker(stack, cleanup)
    assert ended(client, client.post("/v1/jobs", json=DOCUMENT).json())["state"] == "succeeded"


def test_a_job_that_fits_the_grace_time_is_finished(client, stack, cleanup):
    stack.environment["DRAGQUEUE_DRAIN_GRACE_S"] = "60"
    worker = start_worker(stack, cleanup)
    job = client.post("/v1/jobs", json=SLOW).json()
    dragging(client, job)
    os.kill(worker.process.pid, signal.SIGTERM)
    assert ended(client, job)["state"] == "succeeded"
    assert worker.process.wait(LIMIT_S) == 0
