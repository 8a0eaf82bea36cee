import math

import pytest

from jobs.errors import StorageUnavailable
from worker.retry import retry_while_unavailable


class FlakyAction:
    """An action that fails so many times first."""

    def __init__(self, failures):
        self.failures = failures
        self.calls = 0

    def __call__(self):
        self.calls += 1
        if self.calls <= self.failures:
            raise StorageUnavailable("away")
        return "done"


def test_an_action_is_repeated_with_growing_pauses_until_the_server_answers():
    pauses = []
    assert retry_while_unavailable(FlakyAction(failures=8), limit_s=60, sleep=pauses.append) == "done"
    for pause_s, expected_s in zip(pauses, (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0), strict=True):
        assert 0.8 * expected_s <= pause_s <= 1.2 * expected_s


def test_no_pause_ends_after_the_limit():
    action, pauses = FlakyAction(failures=99), []
    with pytest.raises(StorageUnavailable):
        retry_while_unavailable(action, limit_s=0.03, sleep=pauses.append)
    assert (action.calls, pauses) == (1, [])


def test_the_limit_counts_from_the_first_try():
    action, pauses = FlakyAction(failures=99), []
    with pytest.raises(StorageUnavailable):
        retry_while_unavailable(action, limit_s=1.0, sleep=pauses.append, clock=lambda: sum(pauses))
    assert 0.5 < sum(pauses) <= 1.0
    assert action.calls == len(pauses) + 1


def test_an_abandoned_action_is_not_repeated():
    action = FlakyAction(failures=99)
    with pytest.raises(StorageUnavailable):
        retry_while_unavailable(action, limit_s=60, is_abandoned=lambda: action.calls == 3, sleep=lambda seconds: None)
    assert action.calls == 3


def test_other_errors_rise_at_once():
    with pytest.raises(ZeroDivisionError):
        retry_while_unavailable(lambda: 1 // 0, limit_s=60)


def test_however_long_a_server_is_away_the_log_has_one_line_of_it(caplog):
    retry_while_unavailable(FlakyAction(failures=50), limit_s=math.inf, sleep=lambda seconds: None)
    assert [record.getMessage() for record in caplog.records] == ["waiting for a server: away"]
