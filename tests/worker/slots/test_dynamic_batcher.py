"""Drags in threads of their own that make their steps together."""

import threading
import time
import weakref

import pytest
import torch

from engine.drag.loop import DragBatch, steps, to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from tests.generators import tiny_generator
from worker.slots.dynamic_batcher import IDLE_S, DynamicBatcher, RenderLock, StepRequest, group_requests

OPTIONS = DragOptions(max_iterations=6, stop_distance=0.1)


@pytest.fixture(scope="module")
def generator():
    return tiny_generator().double()


def run_of(generator, seed, options=OPTIONS, movable=None):
    return DragRun(generator, generator.map(seed=seed), to_points([[8, 8 + seed]]), to_points([[20, 12]]), movable, options)


def make_batcher(threads=lambda: 1, **options):
    return DynamicBatcher(RenderLock(1, threading.Lock()), threads, **options)


class HookedBatch(DragBatch):
    """A batch that calls a hook with its drags before each iteration."""

    def __init__(self, runs, hook):
        super().__init__(runs)
        self.hook = hook

    def step(self):
        self.hook(self.runs)
        return super().step()


def result(made):
    *_, last = made
    return last


class Slot(threading.Thread):
    """A drag, and how it ended."""

    def __init__(self, batcher, run):
        super().__init__(daemon=True)
        self.batcher, self.drag = batcher, run
        self.outcome = None

    def run(self):
        try:
            self.outcome = result(self.batcher.steps(self.drag))
        except Exception as error:
            self.outcome = error


def serve(batcher, slots, limit_s=30):
    until = time.monotonic() + limit_s
    for slot in slots:
        slot.start()
    while len(batcher.requests) < len(slots):
        assert time.monotonic() < until
        time.sleep(0.001)
    while any(slot.is_alive() for slot in slots):
        assert time.monotonic() < until
        batcher.serve(0.01)


def test_drags_of_one_kind_make_each_step_in_one_pass(generator):
    passes = []
    batcher = make_batcher(idle_s=30, make_batch=lambda runs: HookedBatch(runs, lambda runs: passes.append(len(runs))))
    slots = [Slot(batcher, run_of(generator, seed)) for seed in range(4)]
    serve(batcher, slots)
    assert passes == [4] * 7
    for seed, slot in enumerate(slots):
        expected = result(steps(run_of(generator, seed)))
        assert (slot.outcome.stop_reason, slot.outcome.iteration) == (expected.stop_reason, expected.iteration)
        torch.testing.assert_close(slot.outcome.w, expected.w, atol=1e-9, rtol=0)


def test_one_whose_step_fails_harms_no_other(generator):
    bad = run_of(generator, 1)

    def fail(runs):
        if bad in runs and bad.iteration == 3:
            raise RuntimeError("not enough memory")

    batcher = make_batcher(idle_s=30, make_batch=lambda runs: HookedBatch(runs, fail))
    slots = [Slot(batcher, run_of(generator, 0)), Slot(batcher, bad), Slot(batcher, run_of(generator, 2))]
    serve(batcher, slots)
    assert str(slots[1].outcome) == "not enough memory"
    assert batcher.batch_limit == 1  # half of three
    for seed in (0, 2):
        expected = result(steps(run_of(generator, seed)))
        torch.testing.assert_close(slots[seed].outcome.w, expected.w, atol=1e-9, rtol=0)


def test_who_waits_for_a_server_is_not_waited_for(generator):
    batcher = make_batcher()
    released = threading.Event()

    def stuck():
        with batcher.dragging():
            released.wait()

    waiting = threading.Thread(target=stuck, daemon=True)
    waiting.start()
    slot = Slot(batcher, run_of(generator, 0))
    serve(batcher, [slot])
    assert slot.outcome.stop_reason is not None
    released.set()
    waiting.join()


def test_who_renders_is_waited_for(generator):
    batcher = make_batcher()
    slot = Slot(batcher, run_of(generator, 0))
    collected = []
    with batcher.dragging():  # one more, which is late because it renders
        slot.start()
        with batcher.render_lock:
            collecting = threading.Thread(
                target=lambda: collected.extend(batcher.collect_requests(time.monotonic() + 30)), daemon=True
            )
            collecting.start()
            time.sleep(5 * IDLE_S)
            assert collected == []
        collecting.join(30)
        assert len(collected) == 1
    collected[0].complete(RuntimeError("over"))
    slot.join(30)


class BatchWithoutUpdates(DragBatch):
    def updates(self):
        return 1 / 0


def test_a_failed_step_leaves_nothing_in_memory(generator):
    batcher = make_batcher(make_batch=BatchWithoutUpdates)
    slot = Slot(batcher, run_of(generator, 0))
    run = weakref.ref(slot.drag)
    serve(batcher, [slot])
    assert isinstance(slot.outcome, ZeroDivisionError)
    slot.outcome, slot.drag = None, None
    assert run() is None


def test_a_drag_that_joins_others_remembers_its_own_start_alone(generator):
    runs = [run_of(generator, seed) for seed in range(4)]
    DragBatch(runs).step()
    for tensor in (runs[0].reference.features, runs[0].reference.discs):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_kinds_are_kept_apart_and_whole_maps_in_small_groups(generator):
    wide, movable = DragOptions(motion_radius=6.0), torch.ones(32, 32, dtype=torch.bool)
    movable[:4] = False
    windowed = [StepRequest(run_of(generator, seed)) for seed in range(6)]
    whole = [StepRequest(run_of(generator, seed, movable=movable)) for seed in range(6)]
    requests = [*windowed, *whole, StepRequest(run_of(generator, 6, wide))]
    assert sorted(len(group) for group in group_requests(requests, 64)) == [1, 2, 4, 6]
    assert max(len(group) for group in group_requests(requests, 3)) == 3


def test_steps_and_pictures_take_the_threads_they_are_given(generator, monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    batcher = DynamicBatcher(RenderLock(3, threading.Lock()), lambda: 2)
    with batcher.render_lock:
        assert taken == [3]
    serve(batcher, [Slot(batcher, run_of(generator, 0))])
    assert set(taken[1:]) == {2}
