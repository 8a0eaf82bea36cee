import pytest

from jobs.backoff import Backoff, with_jitter


def test_jitter_is_a_fifth_up_or_down():
    delays = [with_jitter(100.0) for _ in range(1000)]
    assert 80 <= min(delays) < 85
    assert 115 < max(delays) <= 120


@pytest.mark.parametrize(("earlier_failures", "expected_s"), [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (10**9, 60)])
def test_a_delay_doubles_with_each_failure_up_to_its_limit(earlier_failures, expected_s):
    delays = [Backoff(first_s=1, limit_s=60).delay_s(earlier_failures) for _ in range(100)]
    assert 0.8 * expected_s <= min(delays) < max(delays) <= 1.2 * expected_s


def test_no_delay_stays_none():
    assert Backoff(first_s=0, limit_s=60).delay_s(5) == 0
