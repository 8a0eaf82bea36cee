"""Measures many edits of one model through the local stack: one at a time, and several in one process."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from dragqueue_client import Client
from dragqueue_client.models import Batch

from embedded.service import running_service
from embedded.stack import local_stack

MODEL = "demo-faces"
LANDMARKS = ((64, 84), (46, 60), (82, 60), (64, 98))  # of an average face: nose, eyes, mouth
SHIFTS = ((8, 4), (-6, 6), (5, -8), (-9, -3))
POLL_S = 0.2
LIMIT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class BulkTime:
    """The time of many jobs on one worker that has all cores and the model in its memory."""

    preset: str
    slots: int
    jobs: int
    frames_every: int
    seconds: float  # from the first job's beginning to the last one's end

    @property
    def edits_per_hour(self) -> float:
        """Return the rate of the whole run."""
        return 3600 * self.jobs / self.seconds

    def cost(self, hourly: float) -> float:
        """Return the price of 1,000 edits on a machine with this price for an hour."""
        return hourly * 1000 / self.edits_per_hour


def measure_bulk(preset: str, slots: int, jobs: int, frames_every: int, report_ended: Callable[[int], None]) -> BulkTime:
    """Run a batch on a warm worker; report how many jobs have succeeded whenever it looks. Raises RuntimeError, TimeoutError."""
    environment = dict(os.environ) | {"DRAGQUEUE_SLOTS": str(slots)}
    with (
        local_stack(environment=environment) as stack,
        running_service(stack, workers=1) as service,
        Client(service.url, service.key) as client,
    ):
        client.wait(client.submit(edit_document(0, preset, frames_every)).id, timeout_s=LIMIT_S)
        lines = [json.dumps({"job": edit_document(k, preset, frames_every)}) for k in range(jobs)]
        batch = wait_for_batch(client, client.submit_batch("\n".join(lines).encode()), report_ended)
        done = [job for job in client.jobs(batch=batch.id) if job.state == "succeeded"]
    if len(done) != jobs:
        raise RuntimeError(f"{jobs - len(done)} of {jobs} jobs did not succeed")
    began = min(job.started_at for job in done if job.started_at is not None)
    ended = max(job.finished_at for job in done if job.finished_at is not None)
    seconds = (ended - began).total_seconds()
    return BulkTime(preset=preset, slots=slots, jobs=jobs, frames_every=frames_every, seconds=seconds)


def edit_document(number: int, preset: str, frames_every: int) -> dict[str, object]:
    """Return the JSON of an edit of one point; every number has another face."""
    (x, y), (dx, dy) = LANDMARKS[number % len(LANDMARKS)], SHIFTS[number // len(LANDMARKS) % len(SHIFTS)]
    points = [{"handle": [x, y], "target": [x + dx, y + dy]}]
    options = {"drag": {"preset": preset}, "output": {"frames_every": frames_every}}
    return {"model": MODEL, "source": {"seed": number}, "points": points} | options


def wait_for_batch(client: Client, batch: Batch, report_ended: Callable[[int], None]) -> Batch:
    """Poll a batch until it has ended. Raises TimeoutError."""
    until = time.monotonic() + LIMIT_S
    while batch.finished_at is None:
        if time.monotonic() > until:
            raise TimeoutError(f"the batch did not end within {LIMIT_S:g} s")
        time.sleep(POLL_S)
        batch = client.batch(batch.id)
        report_ended(batch.counts.succeeded)
    return batch
