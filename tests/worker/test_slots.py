"""Slots for jobs, which fill as drags make steps, and the meetings that share them."""

import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
import torch

from worker.slots import MEETINGS, Slots, meetings_on


class Some:
    """A job."""

    id = "1"


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
    filled.slots.meetings[0].made = made
    with filled.running():
        assert len(filled.begun) == taken


def test_jobs_take_no_more_slots_than_fit():
    filled = Filled(fits=lambda running: running < 3)
    filled.slots.meetings[0].made = 8
    with filled.running():
        assert len(filled.begun) == 3


def test_jobs_are_spread_over_the_meetings():
    filled = Filled(meetings=2)
    filled.slots.meetings[0].made = filled.slots.meetings[1].made = 2
    with filled.running():
        assert [filled.begun.count(meeting) for meeting in filled.slots.meetings] == [4, 4]


@pytest.mark.parametrize(("busy", "share"), [(0, 4), (1, 4), (2, 2)])
def test_meetings_with_drags_share_the_threads(monkeypatch, busy, share):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    slots = Filled(meetings=2).slots
    with ExitStack() as dragging:
        for meeting in slots.meetings[:busy]:
            dragging.enter_context(meeting.dragging())
        assert slots.share() == share


def test_a_device_that_runs_one_step_after_another_has_one_meeting(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert meetings_on(torch.device("cpu")) == MEETINGS
    assert meetings_on(torch.device("cuda")) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert meetings_on(torch.device("cpu")) == 1
