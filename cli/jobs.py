"""`dragqueue get | list | watch | cancel | stop | retry | download`: the jobs of a running service."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from dragqueue_client import Client, Job, JobSummary
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from cli.connection import KEY, URL, Key, Url, connect
from cli.edits import AsJson

console = Console(stderr=True)
BAR = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"), TimeElapsedColumn())
JobId = Annotated[str, typer.Argument(metavar="ID", help="Of the job.")]


def get(job_id: JobId, url: Url = URL, key: Key = KEY, as_json: AsJson = False) -> None:
    """Show how a job stands."""
    with connect(url, key) as client:
        print_job(client.get(job_id), as_json)


def list_(
    state: Annotated[str | None, typer.Option(help="queued, running, succeeded, failed, canceled or expired.")] = None,
    model: Annotated[str | None, typer.Option()] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Number of jobs to show, the newest first.")] = 50,
    url: Url = URL, key: Key = KEY, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Show jobs, the newest first."""
    table = Table(*(Column(name, no_wrap=True) for name in ("id", "state", "took, s", "ended by")), "model", "created")
    with connect(url, key) as client:
        for job, _ in zip(client.jobs(state=state, model=model), range(limit), strict=False):
            if as_json:
                sys.stdout.write(job.model_dump_json() + "\n")
            else:
                table.add_row(*table_row(job))
    if not as_json:
        Console().print(table)


def table_row(job: JobSummary) -> tuple[str, ...]:
    """Return a job as a row of the list."""
    took = (job.finished_at - job.started_at).total_seconds() if job.finished_at and job.started_at else None
    ended = job.stop_reason or (job.error.code if job.error else "")
    shown = "" if took is None else f"{took:.1f}"
    return str(job.id), job.state, shown, ended, job.model, f"{job.created_at:%Y-%m-%d %H:%M:%S}"


def watch(job_id: JobId, url: Url = URL, key: Key = KEY, as_json: AsJson = False) -> None:
    """Follow a job until it has ended; exit code 0 when it succeeded."""
    with connect(url, key) as client:
        job = follow(client, job_id)
    print_job(job, as_json)
    if not job.succeeded:
        raise typer.Exit(1)


def follow(client: Client, job_id: str) -> Job:
    """Show a progress bar until a job has ended, and return it."""
    with Progress(*BAR, console=console) as bar:
        task = bar.add_task("queued", total=None, now="")

        def show(job: Job) -> None:
            progress = job.progress or {}
            bar.update(
                task, description=f"{job.state} {progress.get('phase', '')}", total=progress.get("max_iterations"),
                completed=progress.get("iteration", 0), now=describe_progress(job),
            )  # fmt: skip

        return client.wait(job_id, on_change=show, timeout_s=float("inf"))


def describe_progress(job: Job) -> str:
    """Return how far a job is, in a few words."""
    progress: dict[str, Any] = job.progress or {}
    if job.place is not None:
        wait = f", about {job.place.starts_in_s.p50:.0f} s" if job.place.starts_in_s else ""
        return f"{job.place.position} before it{wait}"
    if "distance_px" in progress:
        return f"{progress['distance_px']:.1f} px left"
    return f"{progress['psnr_db']:.1f} dB" if "psnr_db" in progress else ""


def cancel(job_id: JobId, url: Url = URL, key: Key = KEY, as_json: AsJson = False) -> None:
    """Throw a job away."""
    with connect(url, key) as client:
        print_job(client.cancel(job_id), as_json)


def stop(job_id: JobId, url: Url = URL, key: Key = KEY, as_json: AsJson = False) -> None:
    """End a running drag and keep its picture as the result."""
    with connect(url, key) as client:
        print_job(client.stop(job_id), as_json)


def retry(job_id: JobId, url: Url = URL, key: Key = KEY) -> None:
    """Do an ended job again; prints the new job's id."""
    with connect(url, key) as client:
        typer.echo(client.retry(job_id).id)


def download(
    job_id: JobId,
    out: Annotated[Path, typer.Option(help="Folder; what an earlier call fetched is not fetched again.")],
    url: Url = URL, key: Key = KEY,
) -> None:  # fmt: skip
    """Fetch everything that a job has stored."""
    with connect(url, key) as client, Progress(*BAR, console=console) as bar:
        task = bar.add_task("downloading", total=None, now="")
        count = 0
        for path in client.download(job_id, out):
            count += 1
            bar.update(task, completed=count, now=path.name)
    console.print(f"{count} artifacts in {out}", highlight=False)


def print_job(job: Job, as_json: bool) -> None:
    """Print a job as JSON, or its state and progress."""
    if as_json:
        sys.stdout.write(job.model_dump_json(indent=1) + "\n")
        return
    typer.echo(f"{job.id} {job.state} {job.stop_reason or ''}".rstrip())
    if job.error is not None:
        typer.echo(f"{job.error.code}: {job.error.message}")
    elif not job.ended:
        typer.echo(describe_progress(job))
