"""A file of edits becomes a folder of results, however often the command is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

from sqlalchemy import func, select
from typer.testing import CliRunner

from cli.main import app
from jobs.states import JobState
from jobs.tables import Job, Tenant
from tests.services.jobs import DOCUMENT
from tests.services.test_photos import photo

LIMIT_S = 120
EDITS = 30


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def start(service, edits, out):
    command = [sys.executable, "-P", "-m", "cli.main", "bulk", "run", str(edits), "--out", str(out), "--json"]
    environment = os.environ | {"DRAGQUEUE_URL": service.url, "DRAGQUEUE_KEY": service.key}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def results(out):
    return len(list(out.glob("*/result.png")))


def test_a_run_killed_twice_has_each_result_once(service, sessions, tmp_path):
    document = DOCUMENT | {"output": {"frames_every": 0, "animation": [], "overlay": False}, "drag": {"max_iterations": 3}}
    rows = [{"custom_id": f"edit{k}", "job": document | {"source": {"seed": k}}} for k in range(EDITS)]
    edits, out = write(tmp_path / "edits.jsonl", rows), tmp_path / "out"
    for least in (1, EDITS // 2):
        bulk, until = start(service, edits, out), time.monotonic() + LIMIT_S
        while results(out) < least:
            assert time.monotonic() < until
            assert bulk.poll() is None
            time.sleep(0.05)
        bulk.send_signal(signal.SIGKILL)
        bulk.wait()
        bulk.stdout.close()
    last = start(service, edits, out)
    told, _ = last.communicate(timeout=LIMIT_S)
    assert (last.returncode, json.loads(told)) == (0, {"edits": EDITS, "succeeded": EDITS, "out": str(out)})
    assert results(out) == EDITS
    done = Counter(json.loads(line)["custom_id"] for line in (out / "done.jsonl").read_text().splitlines() if line)
    assert done == dict.fromkeys((row["custom_id"] for row in rows), 1)
    with sessions() as session:
        query = select(Job.custom_id, func.count()).where(Job.state == JobState.SUCCEEDED).group_by(Job.custom_id)
        assert {custom_id: count for custom_id, count in session.execute(query)} == done
    assert (out / "errors.jsonl").read_text() == ""


def test_what_failed_is_told_and_tried_again(service, tmp_path, monkeypatch):
    monkeypatch.setenv("DRAGQUEUE_URL", service.url)
    monkeypatch.setenv("DRAGQUEUE_KEY", service.key)
    (tmp_path / "face.png").write_bytes(photo())
    (tmp_path / "edits.csv").write_text(
        "custom_id,model,image,source.seed,points,drag.max_iterations,inversion.steps,inversion.tuning_steps\n"
        'good,tiny,,3,"10,10:20,12; 4,4:6,6",3,,\n'
        "photo,tiny,face.png,,,,5,0\n"
        'refused,tiny,,3,"99,99:1,1",3,,\n'
        'failing,missing,,3,"10,10:20,12",3,,\n'
    )
    command = ["bulk", "run", str(tmp_path / "edits.csv"), "--out", str(tmp_path / "out"), "--only", "result.png"]
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, done.stdout) == (1, f"2 of 4 edits have succeeded: {tmp_path / 'out'}\n")
    errors = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [(error["custom_id"], error["state"]) for error in errors] == [("refused", "refused"), ("failing", "failed")]
    assert sorted(path.name for path in (tmp_path / "out").glob("*/*")) == ["result.png", "result.png"]
    edits = (tmp_path / "edits.csv").read_text().replace("99,99:1,1", "9,9:1,1").replace("failing,missing", "failing,tiny")
    (tmp_path / "edits.csv").write_text(edits)
    again = CliRunner().invoke(app, command)
    assert (again.exit_code, again.stdout) == (0, f"4 of 4 edits have succeeded: {tmp_path / 'out'}\n")


def test_a_file_larger_than_the_quota_is_run_in_parts(service, sessions, tmp_path):
    with sessions.begin() as session:
        session.get(Tenant, "default").max_queued = 4
    document = DOCUMENT | {"output": {"frames_every": 0, "animation": [], "overlay": False}, "drag": {"max_iterations": 2}}
    edits = write(
        tmp_path / "edits.jsonl", [{"custom_id": f"edit{k}", "job": document | {"source": {"seed": k}}} for k in range(9)]
    )
    bulk = start(service, edits, tmp_path / "out")
    bulk.communicate(timeout=LIMIT_S)
    assert (bulk.returncode, results(tmp_path / "out")) == (0, 9)


def test_a_batch_that_the_service_has_forgotten_is_sent_again(service, sessions, tmp_path):
    edits = write(tmp_path / "edits.jsonl", [{"custom_id": "edit", "job": DOCUMENT}])
    (tmp_path / "out").mkdir()
    sent = {"key": "k", "custom_ids": ["edit"], "id": "00000000-0000-0000-0000-000000000000"}
    (tmp_path / "out" / "bulk.json").write_text(json.dumps({"batches": [sent]}))
    bulk = start(service, edits, tmp_path / "out")
    bulk.communicate(timeout=LIMIT_S)
    assert (bulk.returncode, results(tmp_path / "out")) == (0, 1)


def test_a_job_is_submitted_watched_and_downloaded_by_command(service, tmp_path, monkeypatch):
    monkeypatch.setenv("DRAGQUEUE_URL", service.url)
    monkeypatch.setenv("DRAGQUEUE_KEY", service.key)
    (tmp_path / "job.json").write_text(json.dumps(DOCUMENT))
    run = CliRunner()
    job_id = run.invoke(app, ["submit", str(tmp_path / "job.json")]).stdout.strip()
    watched = run.invoke(app, ["watch", job_id])
    assert (watched.exit_code, watched.stdout.split()[:2]) == (0, [job_id, "succeeded"])
    assert json.loads(run.invoke(app, ["get", job_id, "--json"]).stdout)["state"] == "succeeded"
    assert job_id in run.invoke(app, ["list", "--json"]).stdout
    assert run.invoke(app, ["download", job_id, "--out", str(tmp_path / "out")]).exit_code == 0
    assert (tmp_path / "out" / "result.png").exists()
    again = run.invoke(app, ["retry", job_id]).stdout.strip()
    assert run.invoke(app, ["cancel", again]).exit_code == 0
