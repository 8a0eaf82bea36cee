"""Drags in threads of their own that make their steps together."""

import threading
import time
import weakref

import pytest
import torch

from engine.drag.batch import DragBatch
from engine.drag.loop import steps, to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from tests.generators import tiny_generator
from worker.slots.dynamic_batcher import IDLE_S, DynamicBatcher, RenderLock, StepRequest, groups

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


def run_of(generator, seed, options=OPTIONS, movable=None):
    return DragRun(generator, generator.map(seed=seed), to_points([[8, 8 + seed]]), to_points([[20, 12]]), movable, options)


def make_meeting(threads=lambda: 1):
    return DynamicBatcher(RenderLock(1, threading.Lock()), threads)


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
        assert time.monotonic() < until
        time.sleep(0.001)
    while any(slot.is_alive() for slot in slots):
        assert time.monotonic() < until
        meeting.serve(0.01)


def test_drags_of_one_kind_make_each_step_in_one_pass(generator, passes, monkeypatch):
    monkeypatch.setattr("worker.slots.dynamic_batcher.IDLE_S", 30)
    meeting = make_meeting()
    slots = [Slot(meeting, run_of(generator, seed)) for seed in range(4)]
    serve(meeting, slots)
    assert passes == [4] * 7
    for seed, slot in enumerate(slots):
        expected = result(steps(run_of(generator, seed)))
        assert (slot.outcome.stop_reason, slot.outcome.iteration) == (expected.stop_reason, expected.iteration)
        torch.testing.assert_close(slot.outcome.w, expected.w, atol=1e-9, rtol=0)


def test_one_whose_step_fails_harms_no_other(generator, monkeypatch):
    monkeypatch.setattr("worker.slots.dynamic_batcher.IDLE_S", 30)
    bad = run_of(generator, 1)
    made = DragBatch.step

    def step(self):
        if bad in self.runs and bad.iteration == 3:
            raise RuntimeError("not enough memory")
        return made(self)

    monkeypatch.setattr(DragBatch, "step", step)
    meeting = make_meeting()
    slots = [Slot(meeting, run_of(generator, 0)), Slot(meeting, bad), Slot(meeting, run_of(generator, 2))]
    serve(meeting, slots)
    assert str(slots[1].outcome) == "not enough memory"
    assert meeting.most == 1  # half of three
    for seed in (0, 2):
        expected = result(steps(run_of(generator, seed)))
        torch.testing.assert_close(slots[seed].outcome.w, expected.w, atol=1e-9, rtol=0)


def test_who_waits_for_a_server_is_not_waited_for(generator):
    meeting = make_meeting()
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


def test_who_renders_is_waited_for(generator):
    meeting = make_meeting()
    slot = Slot(meeting, run_of(generator, 0))
    with meeting.dragging():  # one more, which is late because it renders
        slot.start()
        with meeting.turn:
            gathered = []
            gathering = threading.Thread(target=lambda: gathered.extend(meeting.gather(time.monotonic() + 30)), daemon=True)
            gathering.start()
            time.sleep(5 * IDLE_S)
            assert gathered == []
        gathering.join(30)
        assert len(gathered) == 1
    gathered[0].end(RuntimeError("over"))
    slot.join(30)


def test_a_failed_step_leaves_nothing_in_memory(generator, monkeypatch):
    monkeypatch.setattr(DragBatch, "differentiate", lambda self: 1 / 0)
    meeting = make_meeting()
    slot = Slot(meeting, run_of(generator, 0))
    run = weakref.ref(slot.drag)
    serve(meeting, [slot])
    assert isinstance(slot.outcome, ZeroDivisionError)
    slot.outcome, slot.drag = None, None
    assert run() is None


def test_a_drag_that_joins_others_remembers_its_own_start_alone(generator):
    runs = [run_of(generator, seed) for seed in range(4)]
    DragBatch(runs).step()
    for tensor in (runs[0].memory.reference, runs[0].memory.discs):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_kinds_are_kept_apart_and_whole_maps_in_small_groups(generator):
    wide, movable = DragOptions(motion_radius=6.0), torch.ones(32, 32, dtype=torch.bool)
    movable[:4] = False
    windowed = [StepRequest(run_of(generator, seed)) for seed in range(6)]
    whole = [StepRequest(run_of(generator, seed, movable=movable)) for seed in range(6)]
    places = [*windowed, *whole, StepRequest(run_of(generator, 6, wide))]
    assert sorted(len(group) for group in groups(places, 64)) == [1, 2, 4, 6]
    assert max(len(group) for group in groups(places, 3)) == 3


def test_steps_and_pictures_take_the_threads_they_are_given(generator, monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    meeting = DynamicBatcher(RenderLock(3, threading.Lock()), lambda: 2)
    with meeting.turn:
        assert taken == [3]
    serve(meeting, [Slot(meeting, run_of(generator, 0))])
    assert set(taken[1:]) == {2}
