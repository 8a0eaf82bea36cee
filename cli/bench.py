"""`dragqueue bench`: measures what things cost on this machine, in a checkout of the repository."""

import os
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from cli import scale
from cli.checkout import require_checkout
from cli.errors import CommandError
from jobs.settings import MAX_SLOTS

if TYPE_CHECKING:
    from benchmarks.bulk_speed import BulkTime
    from benchmarks.drag_speed import Comparison

app = typer.Typer(help="Measure what things cost on this machine; needs a checkout.", no_args_is_help=True)
app.command("scale")(scale.scale)
console = Console(stderr=True)
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


@app.callback()
def bench() -> None:
    """Refuse every command of the group where there is no checkout."""
    require_checkout()


@app.command("import")
def import_(
    layout: Annotated[str, typer.Option(help="nvidia, tensorflow, rosinality or mmagic.")] = "nvidia",
    resolution: Annotated[int, typer.Option(min=64, max=1024, help="Pixels: a power of 2.")] = 1024,
) -> None:
    """Import a random network, of 30 million parameters at 1024 px: time, peak memory, how long a worker loads it."""
    from benchmarks.import_speed import measure_import
    from benchmarks.writers import WRITERS

    if layout not in WRITERS:
        raise CommandError(f"--layout must be one of {', '.join(WRITERS)}, got {layout}")
    if resolution.bit_count() != 1:
        raise CommandError(f"--resolution must be a power of 2, got {resolution}")
    with console.status(f"writing and importing a random checkpoint in {layout}'s layout"):
        cost = measure_import(layout, resolution)
    console.print(
        f"{layout}: {cost.file_bytes / 1e6:.0f} MB imported in {cost.seconds:.1f} s, "
        f"peak memory {cost.peak_bytes / 1e6:.0f} MB = {cost.memory_ratio:.2f} times the file; "
        f"a worker reads and verifies it in {cost.load_s:.1f} s",
        highlight=False,
    )


@app.command()
def cancel(
    wish: Annotated[str, typer.Option(help="cancel or stop.")] = "cancel",
    count: Annotated[int, typer.Option(min=2, max=10_000, help="Number of drags.")] = 100,
) -> None:
    """Cancel or stop running drags, and measure how soon they end."""
    from benchmarks.cancel_latency import measure_latencies

    if wish not in ("cancel", "stop"):
        raise CommandError(f"--wish must be cancel or stop, got {wish}")
    with Progress(*BAR, console=console) as bar:
        task = bar.add_task(f"drags told to {wish}", total=count)
        found = measure_latencies(wish, count, lambda: bar.advance(task))
    limit_s = found.iteration_s + found.beat_s
    console.print(
        f"{wish}: p50 {found.percentile(50):.2f} s, p99 {found.percentile(99):.2f} s over {count} drags; "
        f"an iteration {found.iteration_s:.2f} s + a beat {found.beat_s:.2f} s = {limit_s:.2f} s",
        highlight=False,
    )


@app.command()
def api(
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="Duration of the polls; 80 s are 10,000 polls.")] = 80,
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Rounds of submissions.")] = 3,
    round_seconds: Annotated[float, typer.Option(min=0.5, max=600, help="Duration of a round.")] = 4.0,
    changes: Annotated[int, typer.Option(min=2, max=1000, help="Changes of the job that the streams follow, one a second.")] = 10,
) -> None:
    """Measure submissions beside a bare route with one INSERT, polls of 64 clients, events to 200 streams."""
    from benchmarks.api_speed import POLLERS, STREAMS, ApiLoad, measure_api

    with console.status("starting servers") as status:
        load = ApiLoad(poll_s=seconds, rounds=rounds, round_s=round_seconds, changes=changes)
        found = measure_api(load, status.update)
    polls, waits = found.polls, found.fan_out.seconds
    console.print(
        f"submissions: {found.submits.median:.0f} /s, a bare INSERT {found.bare.median:.0f} /s, share {100 * found.share:.0f} %\n"
        f"polls of {POLLERS} clients, {len(polls.latencies_s)} in all: p50 {polls.percentile_ms(50):.1f} ms, "
        f"p99 {polls.percentile_ms(99):.1f} ms; the API's memory grew by {polls.grown_bytes / 1e6:.1f} MB\n"
        f"a change reaches {STREAMS} streams after {sum(waits) / len(waits):.2f} s in the mean, {max(waits):.2f} s at most",
        highlight=False,
    )


@app.command()
def job(
    count: Annotated[int, typer.Option(min=1, max=1000, help="Number of jobs, after one that warms the worker.")] = 5,
    iterations: Annotated[int, typer.Option(min=1, max=2000, help="Iterations of each drag.")] = 100,
) -> None:
    """Measure a job with every frame, phase by phase, beside the same edit by the command line."""
    from benchmarks.job_time import measure_jobs, median

    with Progress(*BAR, console=console) as bar:
        task = bar.add_task("jobs and edits", total=count)
        times = measure_jobs(count, iterations, lambda: bar.advance(task))
    names = ("job_s", "waited_s", "load_s", "drag_s", "rest_s", "alone_s", "allowed_s")
    columns = ("job", "waiting", "load", "drag", "the rest", "edit alone", "allowed")
    print_table(f"seconds, median of {count}", columns, [[f"{median(times, name):.2f}" for name in names]])


@app.command()
def bulk(
    jobs: Annotated[int, typer.Option(min=1, max=100_000, help="Number of edits in each row.")] = 64,
    slots: Annotated[str, typer.Option(help="Numbers of jobs that a worker runs at once, a row for each.")] = "1,16",
    presets: Annotated[str, typer.Option(help="default, fast, paper.")] = "default",
    frames_every: Annotated[int, typer.Option(min=0, max=2000, help="Iterations between two frames; 0 keeps no frames.")] = 0,
    hourly: Annotated[float, typer.Option(min=0, help="Price of the machine for an hour, in any currency.")] = 1.0,
) -> None:
    """Measure the edits an hour of one worker, by how many it runs at once."""
    from benchmarks.bulk_speed import measure_bulk

    settings = list(product(read_words(presets, "presets", ("default", "fast", "paper")), read_slot_counts(slots, "slots")))
    rows = []
    with Progress(*BAR, console=console) as bar:
        for preset, count in settings:
            task = bar.add_task(f"edits, {preset}, slots: {count}", total=jobs)
            rows.append(measure_bulk(preset, count, jobs, frames_every, partial(scale.show_completed, bar, task)))
    frames = f"a frame every {frames_every} iterations" if frames_every else "no frames"
    columns = ("preset", "slots", "s", "edits / h", f"cost of 1,000 at {hourly:g} / h", "times as many")
    print_table(f"{jobs} edits, {frames}", columns, [bulk_cells(row, rows[0], hourly) for row in rows])


@app.command()
def drag(
    resolutions: Annotated[str, typer.Option(help="Resolutions of the networks, such as 256,512,1024.")] = "256,512,1024",
    masks: Annotated[str, typer.Option(help="none, paper, early.")] = "none,paper,early",
    dtypes: Annotated[str, typer.Option(help="float32, bfloat16.")] = "float32",
    together: Annotated[str, typer.Option(help="Numbers of drags that make each step together, such as 1,4,16.")] = "1",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="Threads of the arithmetic.")] = os.cpu_count() or 1,
    device: Annotated[str, typer.Option(help="cpu or cuda:N.")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, max=100, help="Number of rounds; the best counts.")] = 3,
    steps: Annotated[int, typer.Option(min=1, max=1000, help="Steps that a round measures.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for JSON and plot.")] = Path("runs/drag-speed"),
) -> None:
    """Measure a drag's step on random networks of full size beside the step of DragGAN's published program."""
    from benchmarks import drag_speed

    sizes = [int(size) for size in read_words(resolutions, "resolutions", ("64", "128", "256", "512", "1024"))]
    precisions = cast("list[drag_speed.Precision]", read_words(dtypes, "dtypes", get_args(drag_speed.Precision)))
    kinds = read_words(masks, "masks", ("none", "paper", "early"))
    wanted = drag_speed.make_cases(sizes, kinds, precisions, read_slot_counts(together, "together"), threads, device)
    with Progress(*BAR, console=console) as bar:
        task = bar.add_task("steps", total=rounds * len(wanted))

        def show_case(case: drag_speed.SpeedCase) -> None:
            bar.update(task, advance=1, description=f"{case.way}, {case.resolution} px, mask {case.mask}")

        speeds = drag_speed.measure(wanted, rounds, steps, show_case)
    drag_speed.write_report(speeds, out)
    columns = (
        "px", "mask", "type", "together", "official, s", "ours, s", "times faster", "memory, MB", "of official's", "GFLOP",
        "of the rate",
    )  # fmt: skip
    title = f"{drag_speed.device_name(device)}, {threads} threads, {drag_speed.POINTS} points"
    print_table(title, columns, [drag_cells(one) for one in drag_speed.compare(speeds)])


def bulk_cells(row: "BulkTime", plain: "BulkTime", hourly: float) -> list[str]:
    """Return the cells of one row of `bench bulk`; `plain` is the first row, which the others are compared with."""
    times = row.edits_per_hour / plain.edits_per_hour
    rates = [f"{row.seconds:.1f}", f"{row.edits_per_hour:.0f}", f"{row.cost(hourly):.2f}"]
    return [row.preset, str(row.slots), *rates, f"{times:.2f}"]


def drag_cells(one: "Comparison") -> list[str]:
    """Return the cells of one row of `bench drag`."""
    case, ours = one.ours.case, one.ours
    what = [str(case.resolution), case.mask, case.dtype, str(case.together)]
    times = [f"{one.official.median_s:.2f}", f"{ours.drag_s:.3f}", f"{one.times_faster:.1f}"]
    memory = [f"{ours.peak_bytes / 1e6:.0f}", f"1/{1 / one.memory_share:.1f}"]
    return [*what, *times, *memory, f"{ours.gflop:.1f}", f"{100 * ours.share:.0f} %"]


def print_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, at least as wide as its titles need."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="left" if column in ("mask", "type") else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=max(console.width, 110)).print(table)


def read_slot_counts(text: str, option: str) -> list[int]:
    """Read comma-separated numbers of jobs or drags at once. Raises CommandError."""
    return [int(word) for word in read_words(text, option, tuple(str(number) for number in range(1, MAX_SLOTS + 1)))]


def read_words(text: str, option: str, known: tuple[str, ...]) -> list[str]:
    """Read comma-separated words, each of which must be known. Raises CommandError."""
    found = [word.strip() for word in text.split(",") if word.strip()]
    if not found or (unknown := [word for word in found if word not in known]):
        raise CommandError(f"--{option} takes {', '.join(known)}, got {', '.join(unknown) if found else 'nothing'}")
    return found
