"""The dragqueue command. Each subcommand imports what it needs when it runs."""

import json
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.errors import CommandError
from jobs.settings import REPOSITORY

app = typer.Typer(
    name="dragqueue", help="Point-based image editing with DragGAN, as jobs.", no_args_is_help=True, add_completion=False
)
console = Console(stderr=True)
CHECKPOINTS = REPOSITORY / "checkpoints"
Checkpoints = Annotated[Path, typer.Option(help="Folder with manifest.toml.")]
Model = Annotated[str, typer.Option(help="A model of the manifest.")]


def main() -> None:
    try:
        app()
    except CommandError as error:
        console.print(f"dragqueue: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def demo(out: Annotated[Path, typer.Option(help="Where the artifacts go; may exist.")] = Path("demo-out")) -> None:
    """Start the whole service here, submit two edits over HTTP, download everything."""
    from cli.demo import run_demo

    run_demo(out, console)


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the API.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to bind; keep the loopback until there are keys.")] = "127.0.0.1",
    state: Annotated[Path | None, typer.Option(help="Folder that keeps all data.")] = None,
) -> None:
    """Run servers, API, workers and reconciler on this machine until Ctrl-C."""
    from cli.service import running_service, watch
    from cli.stack import default_state, local_stack, stop_on_sigterm

    stop_on_sigterm()
    with local_stack(state or default_state()) as stack, running_service(stack, workers=workers, host=host, port=port) as url:
        console.print(f"Dragqueue serves {url} (docs at {url}/docs); logs in {stack.logs}; Ctrl-C stops it", highlight=False)
        try:
            watch(stack)
        except KeyboardInterrupt:
            console.print("stopping")


@app.command()
def api(
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Serve the HTTP API; settings from the environment."""
    import uvicorn

    from api.app import create_app

    try:
        application = create_app(settings())
    except ValueError as error:  # no checkpoint manifest
        raise CommandError(str(error)) from error
    uvicorn.run(application, host=host, port=port, log_level="info", timeout_graceful_shutdown=10)


@app.command()
def worker(name: Annotated[str, typer.Option(help="Tells the workers of one machine apart.")] = "0") -> None:
    """Run jobs, one at a time; settings from the environment."""
    from worker.app import main as serve

    serve(settings(), name)


@app.command()
def reconciler() -> None:
    """Requeue the jobs of silent workers; settings from the environment."""
    from worker.reconciler import main as serve

    serve(settings())


@app.command()
def migrate() -> None:
    """Bring the database to the newest revision and make the bucket; settings from the environment."""
    from cli.service import prepare

    prepare(settings())


def settings() -> Any:
    from pydantic import ValidationError

    from jobs.settings import Settings

    try:
        return Settings()  # type: ignore[call-arg]  # from the environment
    except ValidationError as error:
        wrong = "; ".join(f"DRAGQUEUE_{'_'.join(map(str, part['loc'])).upper()}: {part['msg']}" for part in error.errors())
        raise CommandError(f"settings: {wrong}") from error


@app.command()
def render(
    model: Model = "demo-faces",
    checkpoints: Checkpoints = CHECKPOINTS,
    seeds: Annotated[str, typer.Option(help="Such as 0-15 or 1,5,9-12.")] = "0-15",
    psi: Annotated[float, typer.Option(help="Truncation; 1 is off.")] = 1.0,
    noise: Annotated[str, typer.Option(help="const or none.")] = "const",
    out: Annotated[Path, typer.Option(help="Picture of all samples.")] = Path("grid.png"),
    npz: Annotated[Path | None, typer.Option(help="Also the raw images [N,3,H,W] and ws [N,L,D].")] = None,
) -> None:
    """Render seeds with the engine alone."""
    import numpy as np

    from cli import offline

    if noise not in ("const", "none"):
        raise CommandError(f"--noise must be const or none, got {noise}")
    numbers = parse_seeds(seeds)
    *_, generator = offline.open_model(checkpoints, model)
    with progress_bar("rendering", len(numbers)) as (bar, task):
        images, ws = offline.render(generator, numbers, psi, noise, lambda count: bar.advance(task, count))  # type: ignore[arg-type]
    offline.write_grid(images, out)
    if npz is not None:
        np.savez(npz, images=images.numpy(), ws=ws.numpy())
    console.print(f"{len(numbers)} pictures in {out}", highlight=False)


@app.command()
def edit(
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1)],
    out: Annotated[Path, typer.Option(help="Folder for the artifacts; may exist.")],
    point: Annotated[list[str], typer.Option(help="X,Y:X,Y in pixels, handle:target; repeat it.")] = [],  # noqa: B006
    model: Model = "demo-faces",
    checkpoints: Checkpoints = CHECKPOINTS,
    psi: Annotated[float | None, typer.Option(help="Truncation; default the model's.")] = None,
    movable: Annotated[Path | None, typer.Option(help="PNG, non-zero where the picture may change.")] = None,
    movable_circle: Annotated[str | None, typer.Option(help="X,Y,RADIUS in pixels.")] = None,
    option: Annotated[list[str], typer.Option(help="NAME=VALUE of the drag, such as max_iterations=100.")] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Drag points of one picture with the engine alone; writes what a job would store."""
    from cli import offline

    began = time.monotonic()
    pairs = [parse_pair(text) for text in point]
    document: dict[str, Any] = {"model": model, "source": {"seed": seed, "truncation_psi": psi}, "points": pairs}
    document["drag"] = dict(parse_option(text) for text in option)
    if movable_circle is not None:
        document["movable"] = {"shapes": [{"circle": numbers_of(movable_circle, 3, "--movable-circle")}]}
    png = None if movable is None else read_file(movable)
    with progress_bar("dragging", document["drag"].get("max_iterations", 200)) as (bar, task):
        result = offline.edit(document, png, checkpoints, out, lambda step: bar.update(task, completed=step.iteration))
    if result is not None and as_json:
        print(offline.summary(result, [pair["target"] for pair in pairs]))
    elif result is not None:
        reached = f"{result.stop_reason} after {result.iteration} iterations, {result.distance_px:.2f} px from the target"
        console.print(f"{reached}, {time.monotonic() - began:.1f} s", highlight=False)
    console.print(f"artifacts in {out}", highlight=False)


def progress_bar(what: str, total: int) -> Any:
    from contextlib import contextmanager

    @contextmanager
    def bar() -> Any:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console) as progress:
            yield progress, progress.add_task(what, total=total)

    return bar()


def parse_seeds(text: str) -> list[int]:
    """1,5,9-12 -> [1, 5, 9, 10, 11, 12]."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            raise CommandError(f"--seeds must look like 0-15 or 1,5,9-12, got {text!r}")
        first, last = int(match[1]), int(match[2] or match[1])
        seeds += range(first, last + 1)
    if not seeds or len(seeds) > 4096 or max(seeds) >= 2**32:
        raise CommandError("--seeds must be 1 to 4096 numbers from 0 to 4294967295")
    return seeds


def parse_pair(text: str) -> dict[str, tuple[float, float]]:
    handle, _, target = text.partition(":")
    pair = {"handle": numbers_of(handle, 2, "--point"), "target": numbers_of(target, 2, "--point")}
    return {name: (x, y) for name, (x, y) in pair.items()}


def numbers_of(text: str, count: int, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise CommandError(f"{option} needs {count} numbers separated by commas, got {text!r}")
    return numbers


def parse_option(text: str) -> tuple[str, Any]:
    """NAME=VALUE; the value as JSON where it is, else as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"--option must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def read_file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error}") from error


if __name__ == "__main__":
    main()
