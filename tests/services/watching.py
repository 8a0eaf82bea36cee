"""What tests see of jobs and processes from outside."""

import time
import urllib.request
from pathlib import Path

LIMIT_S = 60


def wait_until(look, what):
    until = time.monotonic() + LIMIT_S
    while not (seen := look()):
        assert time.monotonic() < until, f"no {what} within {LIMIT_S} s"
        time.sleep(0.05)
    return seen


def ended(client, job):
    def look():
        now = client.get(f"/v1/jobs/{job['id']}").json()
        return now if now["state"] not in ("queued", "running") else None

    return wait_until(look, "end of the job")


def dragging(client, job, iteration=3):
    """The job once it is mid-drag."""

    def look():
        now = client.get(f"/v1/jobs/{job['id']}").json()
        return now if ((now["progress"] or {}).get("iteration") or 0) >= iteration else None

    return wait_until(look, "progress")


def download(client, job, name):
    answer = client.get(f"/v1/jobs/{job['id']}/artifacts/{name}")
    assert answer.status_code == 307
    with urllib.request.urlopen(answer.headers["location"]) as response:
        return response.read()


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
