"""Slots for jobs, which fill as drags make steps, and the batchers that share them."""

import threading
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
import torch

from engine.drag.loop import steps, to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from tests.generators import tiny_generator
from worker.slots.slots import CPU_BATCHERS, Slots, choose_batcher_count

OPTIONS = DragOptions(max_iterations=6, stop_distance=0.1)


@dataclass
class FakeJob:
    """A job of which slots need the id alone."""

    id: int = 0


@contextmanager
def filled_slots(stepped, fits=lambda running: True):
    """Yield eight slots, filled once, with jobs that do not end before the block does.

    Args:
        stepped: for each batcher, how many drags have made a step together.
    """
    over = threading.Event()
    slots = Slots(8, FakeJob, lambda job, batcher: over.wait(), over.is_set, fits=fits, batchers=len(stepped))
    for batcher, made in zip(slots.batchers, stepped, strict=True):
        batcher.most_served = made
    slots.start(FakeJob())
    slots.refill()
    try:
        yield slots
    finally:
        over.set()
        for slot in slots.running:
            slot.thread.join()


@pytest.mark.parametrize(("stepped", "taken"), [(0, 2), (2, 4), (3, 6), (4, 8), (8, 8)])
def test_jobs_take_as_many_slots_again_as_have_made_a_step(stepped, taken):
    with filled_slots([stepped]) as slots:
        assert len(slots.running) == taken


def test_jobs_take_no_more_slots_than_fit():
    with filled_slots([8], fits=lambda running: running < 3) as slots:
        assert len(slots.running) == 3


def test_jobs_are_spread_over_the_batchers():
    with filled_slots([2, 2]) as slots:
        assert [sum(slot.batcher is batcher for slot in slots.running) for batcher in slots.batchers] == [4, 4]


def test_a_worker_that_drains_runs_the_first_job_and_claims_no_other():
    claims, processed = [], []
    slots = Slots(8, lambda: claims.append("claim"), lambda job, batcher: processed.append(job.id), lambda: True)
    slots.run(FakeJob(id=7))
    assert (claims, processed) == ([], [7])


@pytest.mark.parametrize(
    ("threads", "busy", "shares"),
    [(4, [], [4, 4]), (4, [0], [4, 4]), (4, [1], [4, 4]), (4, [0, 1], [2, 2]), (3, [0, 1], [2, 1]), (1, [0, 1], [1, 1])],
)
def test_batchers_with_drags_share_the_threads(threads, busy, shares):
    slots = Slots(8, FakeJob, lambda job, batcher: None, lambda: False, batchers=2, threads=threads)
    with ExitStack() as dragging:
        for number in busy:
            dragging.enter_context(slots.batchers[number].dragging())
        assert [batcher.threads() for batcher in slots.batchers] == shares


def test_drags_of_two_batchers_end_as_they_do_alone():
    generator, ended = tiny_generator().double(), {}

    def run(seed):
        return DragRun(generator, generator.map(seed=seed), to_points([[8, 8 + seed]]), to_points([[20, 12]]), None, OPTIONS)

    def run_job(job, batcher):
        *_, ended[job.id] = batcher.steps(run(job.id))

    waiting = [FakeJob(id=seed) for seed in range(1, 6)]
    Slots(4, lambda: waiting.pop() if waiting else None, run_job, lambda: False, batchers=2).run(FakeJob(id=0))
    for seed in range(6):
        *_, alone = steps(run(seed))
        assert (ended[seed].iteration, ended[seed].stop_reason) == (alone.iteration, alone.stop_reason)
        torch.testing.assert_close(ended[seed].w, alone.w, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("device", "threads", "count"), [("cpu", 4, CPU_BATCHERS), ("cpu", 1, 1), ("cuda", 4, 1)])
def test_a_device_that_runs_one_step_after_another_has_one_batcher(device, threads, count):
    assert choose_batcher_count(torch.device(device), threads) == count
