"""A short version of `make chaos`."""

import pytest

from benchmarks.chaos.__main__ import measure


@pytest.mark.parametrize("slots", [1, 3])
def test_whatever_is_killed_or_unplugged_every_accepted_job_ends_in_one_result(tmp_path, slots):
    verdict = measure(jobs=12, workers=2, slots=slots, faults=12, seed=7, logs=tmp_path / "logs")
    assert verdict.problems == []
    assert sum(line.faults for line in verdict.lines) == 12
    assert verdict.endings["succeeded"] == verdict.jobs >= 12
