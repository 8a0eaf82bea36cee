"""`dragqueue demo`: two edits over HTTP through the whole service, and everything downloaded."""

import json
import math
from pathlib import Path
from typing import Any

from dragqueue_client import Client, Job
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from cli.artifacts import ArtifactFolder
from cli.errors import CommandError
from embedded.service import running_service
from embedded.stack import Stack, local_stack, stop_on_signals

JOB_LIMIT_S = 300
EDITS: dict[str, dict[str, Any]] = {
    "turn-head": {
        "model": "demo-faces",
        "source": {"seed": 3},
        "points": [{"handle": [75, 80], "target": [59, 80]}],
        "drag": {"max_iterations": 100},
        "output": {"animation": ["mp4", "webp"]},
    },
    "open-mouth": {
        "model": "demo-faces",
        "source": {"seed": 12},
        "points": [{"handle": [63, 91], "target": [63, 107]}],
        "movable": {"shapes": [{"circle": [63, 95, 30]}]},
        "drag": {"max_iterations": 100},
        "output": {"animation": ["mp4", "webp"]},
    },
}


def run_demo(out: Path, console: Console) -> None:
    """Run the edits and write their artifacts and one overview picture.

    Raises:
        CommandError: an edit did not succeed.
    """
    stop_on_signals()
    console.print("starting PostgreSQL, Valkey, S3, API, worker, reconciler")
    with local_stack() as stack, running_service(stack) as service, Client(service.url, service.key) as client:
        console.print(f"the service answers on {service.url}", highlight=False)
        submitted = {name: client.submit(edit) for name, edit in EDITS.items()}
        for name, job in submitted.items():
            ended = follow(client, name, job, stack, console)
            folder = ArtifactFolder(out / name).path
            count = sum(1 for _ in client.download(job.id, folder))
            console.print(f"{name}: {describe_result(folder)}; {count} artifacts in {folder}", highlight=False, soft_wrap=True)
            if ended.stop_reason != "reached":
                raise CommandError(f"{name} did not reach its targets")
    draw_overview([out / name for name in EDITS], out / "overview.png")
    console.print(f"all in one picture: {out / 'overview.png'}", highlight=False)


def follow(client: Client, name: str, job: Job, stack: Stack, console: Console) -> Job:
    """Show a job's progress until it has ended.

    Raises:
        CommandError: the job did not succeed.
    """
    columns = (
        TextColumn(f"{name} {{task.description}}"),
        BarColumn(),
        TextColumn("{task.fields[distance]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("queued", total=job.spec["drag"]["max_iterations"], distance="")

        def show(job: Job) -> None:
            stack.check()
            progress = job.progress or {}
            distance = f"{progress['distance_px']:.1f} px left" if "distance_px" in progress else ""
            bar.update(task, description=job.state, completed=progress.get("iteration", 0), distance=distance)

        ended = client.wait(job.id, on_change=show, timeout_s=JOB_LIMIT_S)
    if not ended.succeeded:
        raise CommandError(f"{name} ended {ended.state}: {ended.error}")
    return ended


def draw_overview(folders: list[Path], path: Path) -> None:
    """Draw source, overlay and result of each edit in one picture, with one row for each edit."""
    size = 384
    sheet = Image.new("RGB", (3 * size, len(folders) * size))
    for row, folder in enumerate(folders):
        for column, name in enumerate(("source.png", "overlay.png", "result.png")):
            with Image.open(folder / name) as image:
                sheet.paste(image.resize((size, size), Image.Resampling.BICUBIC), (column * size, row * size))
    sheet.save(path)


def describe_result(folder: Path) -> str:
    """Return how far each handle came, read from the downloaded trajectory."""
    trajectory = json.loads((folder / "trajectory.json").read_text())
    result = trajectory["steps"][trajectory["result_iteration"]]
    first = trajectory["steps"][0]["handles"]
    drags = [
        f"{math.dist(start, target):.1f} px drag ends {math.dist(handle, target):.2f} px from its target"
        for start, handle, target in zip(first, result["handles"], trajectory["targets"], strict=True)
    ]
    return f"{trajectory['stop_reason']} after {result['iteration']} iterations, " + ", ".join(drags)
