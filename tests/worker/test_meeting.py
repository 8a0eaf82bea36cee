"""Drags in threads of their own that make their steps together."""

import threading
import time

import pytest
import torch

from engine.drag import DragBatch, steps, to_points
from engine.options import DragOptions
from engine.run import DragRun
from tests.generators import tiny_generator
from worker.meeting import IDLE_S, Meeting, Turn, groups

OPTIONS = DragOptions(max_iterations=6, stop_distance=0.1)


@pytest.fixture(scope="module")
def generator():
    return tiny_generator().double()


@pytest.fixture
def passes(monkeypatch):
    """How many drags each step was made for."""
    counts = []
    made = DragBatch.step

    def step(self):
        counts.append(len(self.runs))
        return made(self)

    monkeypatch.setattr(DragBatch, "step", step)
    return counts


def run_of(generator, seed, options=OPTIONS):
    return DragRun(generator, generator.map(seed=seed), to_points([[8, 8 + seed]]), to_points([[20, 12]]), None, options)


def result(made):
    *_, last = made
    return last


class Slot(threading.Thread):
    """A drag, and how it ended."""

    def __init__(self, meeting, run):
        super().__init__(daemon=True)
        self.meeting, self.drag = meeting, run
        self.outcome = None

    def run(self):
        try:
            self.outcome = result(self.meeting.steps(self.drag))
        except Exception as error:
            self.outcome = error


def serve(meeting, slots, limit_s=30):
    until = time.monotonic() + limit_s
    for slot in slots:
        slot.start()
    while len(meeting.waiting) < len(slots):
        time.sleep(0.001)
    while any(slot.is_alive() for slot in slots):
        assert time.monotonic() < until
        meeting.serve(0.01)


def test_drags_of_one_kind_make_each_step_in_one_pass(generator, passes, monkeypatch):
    monkeypatch.setattr("worker.meeting.IDLE_S", 30)
    meeting = Meeting()
    slots = [Slot(meeting, run_of(generator, seed)) for seed in range(4)]
    serve(meeting, slots)
    assert passes == [4] * 7
    for seed, slot in enumerate(slots):
        expected = result(steps(run_of(generator, seed)))
        assert (slot.outcome.stop_reason, slot.outcome.iteration) == (expected.stop_reason, expected.iteration)
        torch.testing.assert_close(slot.outcome.w, expected.w, atol=1e-9, rtol=0)


def test_one_whose_step_fails_harms_no_other(generator, monkeypatch):
    bad = run_of(generator, 1)
    made = DragBatch.step

    def step(self):
        if bad in self.runs and bad.iteration == 3:
            raise RuntimeError("not enough memory")
        return made(self)

    monkeypatch.setattr(DragBatch, "step", step)
    meeting = Meeting()
    slots = [Slot(meeting, run_of(generator, 0)), Slot(meeting, bad), Slot(meeting, run_of(generator, 2))]
    serve(meeting, slots)
    assert str(slots[1].outcome) == "not enough memory"
    assert meeting.most == 1  # half of three
    for seed in (0, 2):
        expected = result(steps(run_of(generator, seed)))
        torch.testing.assert_close(slots[seed].outcome.w, expected.w, atol=1e-9, rtol=0)


def test_who_waits_for_a_server_is_not_waited_for(generator):
    meeting = Meeting()
    released = threading.Event()

    def stuck():
        with meeting.dragging():
            released.wait()

    waiting = threading.Thread(target=stuck, daemon=True)
    waiting.start()
    slot = Slot(meeting, run_of(generator, 0))
    serve(meeting, [slot])
    assert slot.outcome.stop_reason is not None
    released.set()
    waiting.join()


def test_who_renders_is_waited_for():
    turn = Turn()
    time.sleep(2 * IDLE_S)
    with turn:
        time.sleep(2 * IDLE_S)
        assert turn.idle_s() == 0
    assert turn.idle_s() < IDLE_S


def test_kinds_are_kept_apart_and_whole_maps_in_small_groups(generator):
    class Place:
        def __init__(self, run):
            self.run = run

    wide = DragOptions(motion_radius=6.0)
    whole = run_of(generator, 0).watched.whole == run_of(generator, 0).watched.until
    places = [Place(run_of(generator, seed)) for seed in range(6)] + [Place(run_of(generator, 6, wide))]
    sizes = sorted(len(group) for group in groups(places, 64))
    assert sizes == ([1, 2, 4] if whole else [1, 6])
