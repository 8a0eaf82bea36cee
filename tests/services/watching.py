"""Waiting for what tests observe of jobs, processes and the database from outside."""

import time
import urllib.request
from pathlib import Path

from sqlalchemy import text

LIMIT_S = 60


def wait_until(check, what):
    """Return the first true answer of a check."""
    deadline = time.monotonic() + LIMIT_S
    while not (answer := check()):
        assert time.monotonic() < deadline, f"no {what} within {LIMIT_S} s"
        time.sleep(0.05)
    return answer


def wait_until_blocked(sessions, count=1):
    """Wait until so many transactions of this database wait for a lock."""
    waiting = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")

    def blocked():
        with sessions() as session:
            return session.scalar(waiting) >= count

    wait_until(blocked, f"{count} blocked transactions")


def ended(client, job):
    """Return the job once it has ended."""

    def read():
        now = client.get(f"/v1/jobs/{job['id']}").json()
        return now if now["state"] not in ("queued", "running") else None

    return wait_until(read, "end of the job")


def dragging(client, job, iteration=3):
    """Return the job once its drag has come that far."""

    def read():
        now = client.get(f"/v1/jobs/{job['id']}").json()
        return now if ((now["progress"] or {}).get("iteration") or 0) >= iteration else None

    return wait_until(read, "progress")


def download(client, job, name):
    """Return the bytes of an artifact."""
    answer = client.get(f"/v1/jobs/{job['id']}/artifacts/{name}")
    assert answer.status_code == 307
    with urllib.request.urlopen(answer.headers["location"]) as response:
        return response.read()


def children_of(pid):
    """Return the ids of a process's children."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    """Return whether a process exists and is no zombie."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
