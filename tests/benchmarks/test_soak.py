"""The arithmetic of a soak; what it measures is not tested here."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from benchmarks.soak_report import ClientRecord, Sample, Usage, fit_line, judge_count, judge_memory, load_samples, summarize

MINUTES = [60.0 * minute for minute in range(20, 61)]


def usage(memory_mb=100.0, files=20, pid=7):
    return Usage(pid=pid, memory_bytes=int(memory_mb * 1e6), files=files, threads=3, connections=4)


def samples(memory_mb=lambda minute: 100.0, files=lambda minute: 20, left=0.0, pid=lambda minute: 7):
    """One a minute of an hour, and one when nothing is retained."""
    counts = dict.fromkeys(("jobs", "artifacts", "attempts", "messages", "job_objects", "job_folders"), 9.0)
    found = [
        Sample(at_s=60.0 * m, loaded=True, processes={"api": usage(memory_mb(m), files(m), pid(m))}, counts=counts)
        for m in range(61)
    ]
    rest = dict.fromkeys(counts, 0.0) | {"artifacts": left}
    return [*found, Sample(at_s=3720.0, loaded=False, processes={"api": usage(pid=pid(62))}, counts=rest)]


class TestLine:
    def test_a_straight_rise_is_found_exactly(self):
        line = fit_line(MINUTES, [200 + 0.4 * (at_s / 60 - 20) for at_s in MINUTES])
        assert (line.begin, line.end, line.minutes) == pytest.approx((200, 216, 40))
        assert line.percent_per_10_minutes == pytest.approx(2.0)
        assert line.uncertainty == pytest.approx(0, abs=1e-6)

    def test_the_uncertainty_is_how_far_lines_through_noise_spread(self):
        noise = np.random.default_rng(0).normal(size=(2000, len(MINUTES)))
        lines = [fit_line(MINUTES, 100 + series) for series in noise]
        spread = np.std([line.growth for line in lines])
        assert np.mean([line.uncertainty for line in lines]) == pytest.approx(spread, rel=0.25)

    def test_two_samples_make_no_line(self):
        with pytest.raises(ValueError, match="needs 8 samples, there are 2"):
            fit_line([0.0, 1.0], [1.0, 2.0])


class TestVerdict:
    def test_memory_may_grow_one_percent_in_ten_minutes(self):
        slow, fast = (fit_line(MINUTES, [100 + rate * k for k in range(41)]) for rate in (0.09, 0.11))
        assert not judge_memory("api", slow, 60).leaks
        assert judge_memory("api", fast, 60).leaks

    def test_a_trial_may_grow_as_much_in_as_large_a_part_of_it(self):
        line = fit_line([60 + 12 * k for k in range(11)], [100 + 0.2 * k for k in range(11)])  # in 10 minutes 10 %, in 30 s 0.5 %
        assert judge_memory("api", line, 60).leaks
        assert not judge_memory("api", line, 3).leaks

    def test_memory_that_a_collector_takes_back_now_and_then_is_no_leak(self):
        line = fit_line(MINUTES, [80 + 3 * (k % 14) for k in range(41)])
        assert line.percent_per_10_minutes > 1
        assert not judge_memory("rclone", line, 60).leaks

    def test_a_descriptor_lost_now_and_then_is_seen_and_a_pool_that_breathes_is_not(self):
        assert judge_count("files", fit_line(MINUTES, [20 + k // 6 for k in range(41)])).leaks
        assert not judge_count("files", fit_line(MINUTES, [20 + 3 * (k % 2) for k in range(41)])).leaks


class TestSummary:
    def test_a_steady_hour_has_no_problem(self):
        summary = summarize(samples(), ClientRecord(), complete=True)
        assert (summary.problems, summary.minutes) == ([], 60)

    def test_what_grows_before_the_window_is_not_judged(self):
        assert summarize(samples(memory_mb=lambda minute: min(100, 5 + 5 * minute)), ClientRecord(), complete=True).problems == []

    def test_leaks_are_named(self):
        summary = summarize(samples(files=lambda minute: 20 + minute, left=3.0), ClientRecord(), complete=True)
        assert summary.problems == ["api files grew from 40 to 80", "3 artifacts left when nothing is retained"]

    def test_a_process_that_was_replaced_is_named(self):
        summary = summarize(samples(pid=lambda minute: 7 if minute < 30 else 8), ClientRecord(), complete=True)
        assert summary.problems == ["the api ended and was replaced"]

    def test_trouble_is_a_problem(self):
        assert summarize(samples(), ClientRecord(troubles=["HTTP 500"]), complete=True).problems == ["HTTP 500"]


def test_samples_of_a_killed_run_can_be_read(tmp_path):
    written = samples()[:3]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(asdict(sample)) + "\n" for sample in written) + '{"at_s": 1')
    assert load_samples(tmp_path) == written
