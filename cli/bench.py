"""dragqueue bench: what things cost on this machine."""

from typing import Annotated

import typer
from rich.console import Console

from cli.errors import CommandError

app = typer.Typer(help="Measure what things cost on this machine.", no_args_is_help=True)
console = Console(stderr=True)


@app.callback()
def bench() -> None:
    """Each command measures one thing."""


@app.command("import")
def import_(
    layout: Annotated[str, typer.Option(help="nvidia, tensorflow, rosinality or mmagic.")] = "nvidia",
) -> None:
    """Import a random 1024-pixel network of 30 million parameters: time and peak memory."""
    from benchmarks.import_speed import measure_import
    from benchmarks.writers import WRITERS

    if layout not in WRITERS:
        raise CommandError(f"--layout must be one of {', '.join(WRITERS)}, got {layout}")
    with console.status(f"writing and importing a random checkpoint in {layout}'s layout"):
        cost = measure_import(layout)
    console.print(
        f"{layout}: {cost.file_bytes / 1e6:.0f} MB imported in {cost.seconds:.1f} s, "
        f"peak memory {cost.peak_bytes / 1e6:.0f} MB = {cost.memory_ratio:.2f} times the file",
        highlight=False,
    )
