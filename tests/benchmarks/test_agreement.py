from benchmarks.agreement import FinalDistance, drag_alone, drag_in_slots, summarize
from benchmarks.quality.cases import displacement_cases
from engine.drag.options import DragOptions
from tests.generators import tiny_generator

OPTIONS = DragOptions(max_iterations=4, stop_distance=0.1)


def test_every_case_ends_once_in_slots_and_as_it_does_alone():
    generator = tiny_generator().double()
    cases = list(displacement_cases(generator, 1.0, 5, 1, 0))
    found = list(drag_in_slots(generator, cases, OPTIONS, 2))
    assert sorted(index for index, _ in found) == [case.index for case in cases]
    for index, final in found:
        expected = drag_alone(generator, cases[index], OPTIONS)
        assert (final.reached, round(final.distance_px, 9)) == (expected.reached, round(expected.distance_px, 9))


def test_the_summary_counts_who_reached_the_same():
    plain, others = [FinalDistance(True, 0.4), FinalDistance(False, 3.0)], [FinalDistance(True, 0.5), FinalDistance(True, 0.4)]
    found = summarize(plain, others, 16, "float32", (2.0, 1.0))
    assert (found.drags, found.agree_percent) == (2, 50.0)
    assert found.median_px == (1.7, 0.45)
