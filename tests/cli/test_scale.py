"""What `dragqueue bench scale` says of its figures."""

from io import StringIO

import pytest
from rich.console import Console

from benchmarks.claims import ClaimRate, QueueLoad
from benchmarks.scale import Delay, Throughput
from cli.errors import CommandError
from cli.scale import claims_table, delay_table, read_numbers, throughput_table


def printed(table):
    console = Console(file=StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()


def run(workers, seconds):
    return Throughput(workers=workers, jobs=40, seconds=seconds, job_s=2.1, idle_ms=45, not_once=0, incomplete=0)


def test_numbers_of_workers_are_read_and_wrong_ones_refused():
    assert read_numbers("1, 2,8", "workers", 64) == [1, 2, 8]
    for wrong in ("", "0", "65", "1,x", "-1"):
        with pytest.raises(CommandError, match="--workers"):
            read_numbers(wrong, "workers", 64)


def test_throughput_is_compared_with_one_workers():
    text = printed(throughput_table([run(1, 80), run(4, 25)]))
    assert "0.500 │" in text
    assert "1.000 │" in text
    assert "0.800 │" in text  # 1.6 jobs/s of 4 * 0.5


def test_without_a_run_of_one_worker_there_is_nothing_to_compare_with():
    assert "1.600 │" in printed(throughput_table([run(4, 25)]))


def test_claims_and_delays_have_units():
    rate = ClaimRate(load=QueueLoad(tenants=2), claims=6000, seconds=10, twice=0, empty=0)
    assert "600" in printed(claims_table([rate]))
    text = printed(delay_table([Delay(from_request_ms=n, from_row_ms=n / 2) for n in range(1, 51)]))
    assert "p50, ms" in text
    assert "the client's request" in text
