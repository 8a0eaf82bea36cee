"""A short version of `make chaos`."""

import pytest

from benchmarks.chaos.__main__ import measure


@pytest.mark.parametrize("slots", [1, 3])
def test_whatever_is_killed_or_unplugged_every_accepted_job_ends_in_one_result(tmp_path, slots):
    report = measure(jobs=12, workers=2, slots=slots, faults=12, seed=7, logs=tmp_path / "logs")
    assert report.problems == []
    assert sum(line.faults for line in report.lines) == 12
    assert report.endings["succeeded"] == report.jobs >= 12
