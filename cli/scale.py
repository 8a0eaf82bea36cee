"""`dragqueue bench scale`: throughput by number of workers, claims a second, the delay that the queue adds."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.errors import CommandError

if TYPE_CHECKING:
    from benchmarks.claims import ClaimRate, QueueLoad
    from benchmarks.scale import Delay, Throughput
    from embedded.stack import Stack

MOST_WORKERS = 64
MOST_TENANTS = 1000
console = Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=120)  # tables into a file stay whole
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class Part(StrEnum):
    """One thing that `bench scale` measures."""

    THROUGHPUT = "throughput"
    CLAIMS = "claims"
    DELAY = "delay"


def scale(
    part: Annotated[list[Part] | None, typer.Option(help="Only this; may be given several times.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=10_000, help="Jobs in each run of throughput.")] = 200,
    workers: Annotated[str, typer.Option(help="Numbers of worker processes, separated by commas.")] = "1,2,4,8",
    claim_tenants: Annotated[str, typer.Option(help="Numbers of tenants in the queue of claims.")] = "1,2,20",
    claim_rows: Annotated[int, typer.Option(min=1000, max=10_000_000, help="Jobs in the queue of claims.")] = 100_000,
    claim_seconds: Annotated[float, typer.Option(min=0.1, max=600, help="Duration of each run of claims.")] = 10.0,
    delays: Annotated[int, typer.Option(min=1, max=10_000, help="Jobs of delay, one after another.")] = 50,
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Run workers whose engine sleeps, on servers of their own: throughput, claims a second, the queue's delay."""
    from benchmarks.claims import claim_loads
    from benchmarks.scale import prepared_stack
    from embedded.stack import stop_on_signals

    numbers = read_numbers(workers, "workers", MOST_WORKERS)
    loads = claim_loads(read_numbers(claim_tenants, "claim-tenants", MOST_TENANTS), claim_rows, claim_seconds)
    figures: dict[str, list[dict[str, Any]]] = {}
    stop_on_signals()
    with prepared_stack() as stack, Progress(*BAR, console=console) as bar:
        for chosen in part or Part:
            match chosen:
                case Part.THROUGHPUT:
                    figures[chosen.value] = measure_throughputs(stack, bar, numbers, jobs)
                case Part.CLAIMS:
                    figures[chosen.value] = measure_claim_rates(stack, bar, loads)
                case Part.DELAY:
                    figures[chosen.value] = measure_queue_delays(stack, bar, delays)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1))


def read_numbers(text: str, option: str, most: int) -> list[int]:
    """Read 1,2,8 as [1, 2, 8]. Raises CommandError."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= number <= most for number in numbers):
        raise CommandError(f"--{option}: give numbers from 1 to {most}, separated by commas, not {text}")
    return numbers


def measure_throughputs(stack: "Stack", bar: Progress, numbers: list[int], jobs: int) -> list[dict[str, Any]]:
    """Measure the throughput of each number of workers, print the table, return the figures."""
    from benchmarks.scale import measure_throughput
    from benchmarks.synthetic_work import SyntheticWork

    runs = []
    for workers in numbers:
        task = bar.add_task(f"{jobs} jobs, workers: {workers}", total=jobs)
        runs.append(measure_throughput(stack, workers, jobs, SyntheticWork(), partial(show_completed, bar, task)))
    console.print(throughput_table(runs))
    return [asdict(run) | {"jobs_per_s": run.per_second} for run in runs]


def show_completed(bar: Progress, task: TaskID, completed: int) -> None:
    """Show how many jobs of a run have ended."""
    bar.update(task, completed=completed)


def throughput_table(runs: Sequence["Throughput"]) -> Table:
    """Return a table of runs, each compared with the run of one worker where there is one."""
    one = next((run.per_second for run in runs if run.workers == 1), None)
    table = right_table(
        "Jobs of 2 s, from the first claim to the last end; a job and a pause: medians", "workers", "jobs", "time, s", "jobs/s",
        "of N times one's", "a job, s", "then idle, ms", "not once", "incomplete",
    )  # fmt: skip
    for run in runs:
        ratio = "" if one is None else f"{run.per_second / one / run.workers:.3f}"
        figures = (f"{run.seconds:.1f}", f"{run.per_second:.3f}", ratio, f"{run.job_s:.3f}", f"{run.idle_ms:.0f}")
        table.add_row(str(run.workers), str(run.jobs), *figures, str(run.not_once), str(run.incomplete))
    return table


def measure_claim_rates(stack: "Stack", bar: Progress, loads: Sequence["QueueLoad"]) -> list[dict[str, Any]]:
    """Measure the claims a second from each queue, print the table, return the figures."""
    from benchmarks.claims import measure_claims

    url = stack.settings().database_url
    rates = [measure_claims(url, load) for load in bar.track(loads, description="claims from a long queue")]
    console.print(claims_table(rates))
    return [asdict(rate) | {"claims_per_s": rate.per_second} for rate in rates]


def claims_table(rates: Sequence["ClaimRate"]) -> Table:
    """Return a table with a row for each queue."""
    table = right_table(
        "Claims by threads, each with a connection of its own", "tenants", "rows queued", "analyzed", "claimers", "processes",
        "claims/s", "claimed twice", "empty answers",
    )  # fmt: skip
    for rate in rates:
        load = rate.load
        given = (load.tenants, f"{load.rows:,}", "yes" if load.analyzed else "no", load.claimers, load.processes)
        table.add_row(*map(str, given), f"{rate.per_second:.0f}", str(rate.twice), str(rate.empty))
    return table


def measure_queue_delays(stack: "Stack", bar: Progress, count: int) -> list[dict[str, Any]]:
    """Measure the delays of so many jobs, print the table, return the figures."""
    from benchmarks.scale import measure_delays

    delays = list(bar.track(measure_delays(stack, count), total=count, description="one job after another"))
    console.print(delay_table(delays))
    return [asdict(delay) for delay in delays]


def delay_table(delays: Sequence["Delay"]) -> Table:
    """Return a table of the delays' percentiles."""
    table = right_table(
        f"{len(delays)} jobs over HTTP to one idle worker", "until the start from", "p50, ms", "p95, ms", "most, ms"
    )
    rows = {
        "the client's request": [delay.from_request_ms for delay in delays],
        "the row": [delay.from_row_ms for delay in delays],
    }
    for name, times in rows.items():
        ordered = sorted(times)
        table.add_row(name, *(f"{time:.0f}" for time in (median(ordered), ordered[int(0.95 * len(ordered))], ordered[-1])))
    return table


def right_table(title: str, *columns: str) -> Table:
    """Return an empty table whose columns are aligned to the right."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table
