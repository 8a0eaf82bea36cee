"""Slots for jobs, which fill as drags make steps, and the meetings that share them."""

import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
import torch

from engine.drag.loop import steps, to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from tests.generators import tiny_generator
from worker.slots.slots import MEETINGS, Slots, meetings_on

OPTIONS = DragOptions(max_iterations=6, stop_distance=0.1)


@dataclass
class Some:
    """A job."""

    id: int = 0


class Filled:
    """Eight slots with jobs that do not end before the block does."""

    def __init__(self, **how):
        self.over, self.begun = threading.Event(), []  # the meetings of the jobs that began
        self.slots = Slots(8, Some, self.run, self.over.is_set, **how)

    def run(self, job, meeting):
        self.begun.append(meeting)
        self.over.wait()

    @contextmanager
    def running(self):
        running = threading.Thread(target=self.slots.run, args=(Some(),))
        running.start()
        time.sleep(0.3)
        try:
            yield self
        finally:
            self.over.set()
            running.join()


@pytest.mark.parametrize(("made", "taken"), [(0, 2), (2, 4), (3, 6), (4, 8), (8, 8)])
def test_jobs_take_as_many_slots_again_as_have_made_a_step(made, taken):
    filled = Filled()
    filled.slots.meetings[0].most_served = made
    with filled.running():
        assert len(filled.begun) == taken


def test_jobs_take_no_more_slots_than_fit():
    filled = Filled(fits=lambda running: running < 3)
    filled.slots.meetings[0].most_served = 8
    with filled.running():
        assert len(filled.begun) == 3


def test_jobs_are_spread_over_the_meetings():
    filled = Filled(meetings=2)
    filled.slots.meetings[0].most_served = filled.slots.meetings[1].most_served = 2
    with filled.running():
        assert [filled.begun.count(meeting) for meeting in filled.slots.meetings] == [4, 4]


@pytest.mark.parametrize(
    ("threads", "busy", "shares"),
    [(4, [], [4, 4]), (4, [0], [4, 4]), (4, [1], [4, 4]), (4, [0, 1], [2, 2]), (3, [0, 1], [2, 1]), (1, [0, 1], [1, 1])],
)
def test_meetings_with_drags_share_the_threads(monkeypatch, threads, busy, shares):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    slots = Filled(meetings=2).slots
    with ExitStack() as dragging:
        for number in busy:
            dragging.enter_context(slots.meetings[number].dragging())
        assert [meeting.threads() for meeting in slots.meetings] == shares


def test_drags_of_two_meetings_end_as_they_do_alone():
    generator, ended = tiny_generator().double(), {}

    def run(seed):
        return DragRun(generator, generator.map(seed=seed), to_points([[8, 8 + seed]]), to_points([[20, 12]]), None, OPTIONS)

    def run_job(job, meeting):
        *_, ended[job.id] = meeting.steps(run(job.id))

    waiting = [Some(id=seed) for seed in range(1, 6)]
    Slots(4, lambda: waiting.pop() if waiting else None, run_job, lambda: False, meetings=2).run(Some(id=0))
    for seed in range(6):
        *_, alone = steps(run(seed))
        assert (ended[seed].iteration, ended[seed].stop_reason) == (alone.iteration, alone.stop_reason)
        torch.testing.assert_close(ended[seed].w, alone.w, atol=1e-9, rtol=0)


def test_a_device_that_runs_one_step_after_another_has_one_meeting(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert meetings_on(torch.device("cpu")) == MEETINGS
    assert meetings_on(torch.device("cuda")) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert meetings_on(torch.device("cpu")) == 1
