"""The dragqueue command. Each subcommand imports what it needs when it runs, so that the others start fast."""

import os
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from dragqueue_client import ClientError
from rich.console import Console
from rich.progress import Progress

from cli import bench, bulk, edits, jobs, keys, models, quality, submit
from cli.edit_files import parse_seeds
from cli.errors import CommandError
from cli.models import CHECKPOINTS, Checkpoints
from embedded.errors import StackError
from jobs.environment import SettingsInvalid, read_settings
from jobs.settings import Settings

app = typer.Typer(
    name="dragqueue", help="Point-based image editing with DragGAN, as jobs.", no_args_is_help=True, add_completion=False
)
app.add_typer(models.app, name="models")
app.add_typer(bench.app, name="bench")
app.command("eval")(quality.evaluate)
app.command("edit")(edits.edit)
app.command("invert")(edits.invert)
app.command("submit")(submit.submit)
app.add_typer(bulk.app, name="bulk")
app.add_typer(keys.app, name="keys")
app.add_typer(keys.tenants, name="tenants")
for name, command in (
    ("get", jobs.get), ("list", jobs.list_), ("watch", jobs.watch), ("cancel", jobs.cancel), ("stop", jobs.stop),
    ("retry", jobs.retry), ("download", jobs.download),
):  # fmt: skip
    app.command(name)(command)
console = Console(stderr=True)
# an OSError is a folder that cannot be written, a full disk, ...
EXPECTED_ERRORS = (CommandError, StackError, SettingsInvalid, ClientError, OSError)


class Noise(StrEnum):
    """The noise of a rendered picture."""

    CONST = "const"
    NONE = "none"


Model = Annotated[str, typer.Option(help="A model of the manifest.")]


def main() -> None:
    """Run the command; print an error as one sentence and exit with code 1."""
    try:
        app()
    except EXPECTED_ERRORS as error:
        console.print(f"dragqueue: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the artifacts; it may exist.")] = Path("demo-out"),
) -> None:
    """Start the whole service here, submit two edits over HTTP, download everything."""
    from cli.demo import run_demo

    run_demo(out, console)


@app.command()
def up(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the API.")] = 8000,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    state: Annotated[Path | None, typer.Option(help="Folder that keeps all data.")] = None,
) -> None:
    """Run servers, API, workers and reconciler on this machine until Ctrl-C. What ends by itself is started again."""
    from embedded.service import running_service
    from embedded.stack import default_state, local_stack, stop_on_signals
    from embedded.supervision import Supervisor

    stop_on_signals()
    with local_stack(state or default_state()) as stack, running_service(stack, workers=workers, host=host, port=port) as service:
        url = service.url
        console.print(f"Dragqueue serves {url} (docs at {url}/docs); logs in {stack.logs}; Ctrl-C stops it", highlight=False)
        console.print(f"export DRAGQUEUE_URL={url} DRAGQUEUE_KEY={service.key}", highlight=False, soft_wrap=True)
        try:
            Supervisor(stack, partial(console.print, highlight=False, markup=False, soft_wrap=True)).run()
        except KeyboardInterrupt:
            console.print("stopping")


@app.command()
def api(
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> None:
    """Serve the HTTP API; settings from the environment."""
    from api.app import create_app
    from api.transport import serve
    from jobs.errors import ManifestInvalid

    chosen = settings()
    try:
        application = create_app(chosen)
    except ManifestInvalid as error:
        raise CommandError(f"{chosen.checkpoints}: {error}") from error
    serve(application, chosen, host, port)


@app.command()
def worker(name: Annotated[str, typer.Option(help="Tells the workers of one machine apart.")] = "0") -> None:
    """Run jobs: one at a time, or DRAGQUEUE_SLOTS at once; settings from the environment."""
    from worker.app import main as serve

    serve(settings(), name)


@app.command()
def reconciler() -> None:
    """Requeue the jobs of silent workers, deliver, purge, sign; settings from the environment."""
    from worker.reconciler.c2pa import C2paSettingsInvalid
    from worker.reconciler.reconciler import main as serve

    try:
        serve(settings())
    except C2paSettingsInvalid as error:
        raise CommandError(str(error)) from error


@app.command()
def migrate() -> None:
    """Bring the database to the newest revision and make the bucket; settings from the environment."""
    from embedded.service import prepare

    prepare(settings())


@app.command()
def doctor(as_json: edits.AsJson = False) -> None:
    """Check servers, rights, clocks, checkpoints and workers, and say what to do; settings from the environment."""
    from cli.doctor.examination import print_findings

    if not print_findings(os.environ, as_json=as_json):
        raise typer.Exit(1)


def settings() -> Settings:
    """Return the settings of the environment."""
    return read_settings(os.environ)


@app.command()
def render(
    model: Model = "demo-faces",
    checkpoints: Checkpoints = CHECKPOINTS,
    seeds: Annotated[str, typer.Option(help="Such as 0-15 or 1,5,9-12.")] = "0-15",
    psi: Annotated[float | None, typer.Option(min=-2, max=2, help="Truncation, 1 is off; default the model's.")] = None,
    class_: Annotated[int | None, typer.Option("--class", min=0, help="Of a conditional model.")] = None,
    noise: Annotated[Noise, typer.Option()] = Noise.CONST,
    out: Annotated[Path, typer.Option(help="PNG of all samples.")] = Path("grid.png"),
    npz: Annotated[Path | None, typer.Option(help="Also the raw images [N,3,H,W] and ws [N,L,D].")] = None,
) -> None:
    """Render seeds with the engine alone."""
    from cli import offline

    if out.suffix != ".png":
        raise CommandError(f"--out must end in .png, got {out}")
    numbers = parse_seeds(seeds)
    _, entry, generator = offline.open_model(checkpoints, model)
    psi = entry.defaults.truncation_psi if psi is None else psi
    with Progress(*edits.BAR, console=console) as bar:
        task = bar.add_task("rendering", total=len(numbers))
        ws = offline.map_seeds(generator, numbers, psi, class_)
        images = offline.render(generator, ws, noise.value, lambda count: bar.advance(task, count))
    offline.write_grid(images, out)
    if npz is not None:
        offline.write_npz(images, ws, npz)
    console.print(f"{len(numbers)} pictures in {out}", highlight=False)


if __name__ == "__main__":
    main()
