"""`dragqueue bench scale`: what the queue bears, and whether twice the workers do twice the work."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli.errors import CommandError

if TYPE_CHECKING:
    from benchmarks.claims import ClaimRate
    from benchmarks.scale import Delay, Throughput
    from embedded.stack import Stack

MOST_WORKERS = 64
DELAYED = 50  # jobs one after another
console = Console(stderr=True) if sys.stderr.isatty() else Console(stderr=True, width=120)  # tables into a file stay whole
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


class Part(StrEnum):
    THROUGHPUT = "throughput"
    CLAIMS = "claims"
    DELAY = "delay"


def scale(
    part: Annotated[list[Part] | None, typer.Option(help="Only this; may be given several times.")] = None,
    jobs: Annotated[int, typer.Option(min=1, max=10_000, help="In each run of throughput.")] = 200,
    workers: Annotated[str, typer.Option(help="Numbers of worker processes, separated by commas.")] = "1,2,4,8",
    out: Annotated[Path | None, typer.Option(help="JSON file for the figures.")] = None,
) -> None:
    """Run workers whose engine sleeps, on servers of their own: throughput, claims a second, the queue's delay."""
    from benchmarks.scale import prepared_stack
    from embedded.stack import stop_on_signals

    numbers, figures = read_numbers(workers), {}
    stop_on_signals()
    with prepared_stack() as stack, Progress(*BAR, console=console) as bar:
        for chosen in part or Part:
            if chosen is Part.THROUGHPUT:
                figures[chosen.value] = throughput(stack, bar, numbers, jobs)
            else:
                figures[chosen.value] = claims(stack, bar) if chosen is Part.CLAIMS else delay(stack, bar)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(figures, indent=1))


def read_numbers(text: str) -> list[int]:
    """1,2,8 -> [1, 2, 8]."""
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(1 <= number <= MOST_WORKERS for number in numbers):
        raise CommandError(f"--workers: give numbers from 1 to {MOST_WORKERS}, separated by commas, not {text}")
    return numbers


def throughput(stack: "Stack", bar: Progress, numbers: list[int], jobs: int) -> list[dict[str, Any]]:
    from benchmarks.scale import Work, measure_throughput

    runs = []
    for workers in numbers:
        task = bar.add_task(f"{jobs} jobs, workers: {workers}", total=jobs)
        runs.append(measure_throughput(stack, workers, jobs, Work(), lambda ended, task=task: bar.update(task, completed=ended)))  # type: ignore[misc]
    console.print(throughput_table(runs))
    return [asdict(run) | {"jobs_per_s": run.per_second} for run in runs]


def throughput_table(runs: Sequence["Throughput"]) -> Table:
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


def claims(stack: "Stack", bar: Progress) -> list[dict[str, Any]]:
    from benchmarks.claims import LOADS, measure_claims

    url = stack.settings().database_url
    rates = [measure_claims(url, load) for load in bar.track(LOADS, description="claims from a long queue")]
    console.print(claims_table(rates))
    return [asdict(rate) | {"claims_per_s": rate.per_second} for rate in rates]


def claims_table(rates: Sequence["ClaimRate"]) -> Table:
    table = right_table(
        "Claims by threads, each with a connection of its own", "tenants", "rows queued", "analyzed", "claimers", "processes",
        "claims/s", "claimed twice", "empty answers",
    )  # fmt: skip
    for rate in rates:
        load = rate.load
        given = (load.tenants, f"{load.rows:,}", "yes" if load.analyzed else "no", load.claimers, load.processes)
        table.add_row(*map(str, given), f"{rate.per_second:.0f}", str(rate.twice), str(rate.empty))
    return table


def delay(stack: "Stack", bar: Progress) -> list[dict[str, Any]]:
    from benchmarks.scale import measure_delays

    delays = list(bar.track(measure_delays(stack, DELAYED), total=DELAYED, description="one job after another"))
    console.print(delay_table(delays))
    return [asdict(delay) for delay in delays]


def delay_table(delays: Sequence["Delay"]) -> Table:
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
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table
