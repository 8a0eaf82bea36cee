import pytest
import torch
import torch.nn.functional as F

from benchmarks.drag_speed import SpeedCase, handles_and_targets, make_cases, measure_here, movable
from benchmarks.official_step import OfficialDrag
from engine.drag.loop import DragBatch
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from tests.generators import some_w, tiny_generator


def test_the_official_step_pulls_the_way_that_the_engine_does():
    generator = tiny_generator(512)  # where both discs have the same 25 pixels
    w, (handles, targets) = some_w(generator), (part.round() for part in handles_and_targets(512))
    run = DragRun(generator, w, handles, targets, None, DragOptions())
    batch = DragBatch([run])
    batch.step()
    [gradient] = batch.updates()
    official = OfficialDrag(generator, w, handles, targets, None)
    official.step()
    pulled = official.variable.grad[:, :6]
    assert F.cosine_similarity(gradient.flatten(), pulled.flatten(), dim=0) > 0.99


def test_the_official_step_holds_what_is_fixed():
    generator = tiny_generator(256)
    fixed = (~movable(256)).float()
    drag = OfficialDrag(generator, some_w(generator), *handles_and_targets(256), fixed)
    losses = [drag.step() for _ in range(3)]
    assert all(loss > 0 for loss in losses)
    assert torch.isfinite(drag.variable).all()


def test_each_of_our_cases_has_the_official_one_that_does_the_same():
    chosen = make_cases([256], ["none", "early"], ["float32", "bfloat16"], [1, 4], 1, "cpu")
    assert [case.mask for case in chosen if case.way == "official"] == ["none", "paper"]
    assert {case.official for case in chosen} <= set(chosen)


def test_a_case_says_what_it_costs():
    one, four = (
        measure_here(SpeedCase(way="ours", resolution=64, mask="early", together=count, threads=1), 1) for count in (1, 4)
    )
    assert one["gflop"] > 1
    assert four["gflop"] == pytest.approx(4 * one["gflop"], rel=0.01)
    assert len(one["step_s"]) == 1
