import pytest

from jobs.webhooks.deliveries import RETRY_DELAYS_S, retry_delay_s

DAY_S = 86_400


def test_the_rests_are_those_of_standard_webhooks():
    assert RETRY_DELAYS_S == (0, 5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 10 * 3600, 14 * 3600, 20 * 3600, 24 * 3600)


@pytest.mark.parametrize("tries", range(1, 10))
def test_each_rest_is_its_own_give_or_take_a_fifth(tries):
    rests = [retry_delay_s(tries, None, 1.0) for _ in range(1000)]
    assert 0.8 * RETRY_DELAYS_S[tries] <= min(rests) < 0.85 * RETRY_DELAYS_S[tries]
    assert 1.15 * RETRY_DELAYS_S[tries] < max(rests) <= 1.2 * RETRY_DELAYS_S[tries]


def test_after_the_last_try_there_is_none():
    assert retry_delay_s(10, None, 1.0) is retry_delay_s(11, 5.0, 1.0) is None


def test_a_receiver_may_ask_for_a_longer_rest_of_up_to_a_day():
    assert retry_delay_s(1, 3600.0, 1.0) == 3600.0
    assert retry_delay_s(4, 1.0, 1.0) > 3600.0
    assert retry_delay_s(1, 99.0 * DAY_S, 1.0) == DAY_S
