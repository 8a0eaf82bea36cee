"""`dragqueue edit` and `dragqueue invert`: edits by the engine alone, with the same artifacts as a job's."""

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cli.errors import CommandError
from cli.models import CHECKPOINTS, Checkpoints

console = Console(stderr=True)
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
Out = Annotated[Path, typer.Option(help="Folder for the artifacts; an existing folder is used.")]
Model = Annotated[str, typer.Option(help="A model of the manifest.")]
Crop = Annotated[
    str | None, typer.Option(help="Of the photo: center, LEFT,TOP,RIGHT,BOTTOM, or five points X,Y of a face: eyes, nose, mouth.")
]
InversionOption = Annotated[list[str], typer.Option(help="NAME=VALUE of the inversion, such as tuning_steps=0.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
FACE = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")


def edit(
    out: Out,
    seed: Annotated[int | None, typer.Option(min=0, max=2**32 - 1)] = None,
    image: Annotated[Path | None, typer.Option(help="A photo, inverted first.")] = None,
    latent: Annotated[Path | None, typer.Option(help=".safetensors, .npz or .npy with w.")] = None,
    point: Annotated[list[str], typer.Option(help="X,Y:X,Y in pixels, handle:target; repeat it.")] = [],  # noqa: B006
    model: Model = "demo-faces",
    checkpoints: Checkpoints = CHECKPOINTS,
    psi: Annotated[float | None, typer.Option(help="Truncation of the seed; default the model's.")] = None,
    class_: Annotated[int | None, typer.Option("--class", min=0, help="Of a conditional model.")] = None,
    crop: Crop = None,
    inversion: InversionOption = [],  # noqa: B006
    movable: Annotated[Path | None, typer.Option(help="PNG, non-zero where the picture may change.")] = None,
    movable_circle: Annotated[str | None, typer.Option(help="X,Y,RADIUS in pixels.")] = None,
    option: Annotated[list[str], typer.Option(help="NAME=VALUE of the drag, such as max_iterations=100.")] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Drag points of one picture with the engine alone; writes what a job would store. Points are pixels of that picture."""
    if sum(given is not None for given in (seed, image, latent)) != 1:
        raise CommandError("give exactly one of --seed, --image, --latent")
    source = {"seed": seed, "truncation_psi": psi, "class": class_} | photo_source(crop)
    document: dict[str, Any] = {"model": model, "source": source, "points": [parse_pair(text) for text in point]}
    document["drag"] = dict(parse_option(text, "--option") for text in option)
    if inversion:
        document["inversion"] = dict(parse_option(text, "--inversion") for text in inversion)
    if movable_circle is not None:
        document["movable"] = {"shapes": [{"circle": parse_numbers(movable_circle, 3, "--movable-circle")}]}
    run_edit(document, out, as_json, checkpoints, image=image, latent=latent, movable=movable)


def invert(
    image: Annotated[Path, typer.Option(help="A photo.")],
    out: Out,
    model: Model = "demo-faces",
    checkpoints: Checkpoints = CHECKPOINTS,
    crop: Crop = None,
    inversion: InversionOption = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Find a photo in the generator: its latent, and the generator tuned to it."""
    document = {"model": model, "source": photo_source(crop)}
    document["inversion"] = dict(parse_option(text, "--inversion") for text in inversion)
    run_edit(document, out, as_json, checkpoints, image=image)


def run_edit(document: dict[str, Any], out: Path, as_json: bool, checkpoints: Path, **files: Path | None) -> None:
    """Run an edit, with a bar for each phase, and print how it ended."""
    from cli.offline import Given, OfflineEdit

    lpips = os.environ.get("DRAGQUEUE_LPIPS_FILE")
    ready = OfflineEdit(document, Given(**files), checkpoints, None if lpips is None else Path(lpips))
    with Progress(*BAR, console=console) as bar:
        result = ready.run(out, PhaseBars(ready, bar).show)
    if as_json:
        typer.echo(ready.summary(result))
    elif result is not None:
        distance = f"{result.distance_px:.2f} px from the target"
        console.print(f"{result.stop_reason} at iteration {result.iteration}, {distance}", highlight=False)
    console.print(f"artifacts in {out}", highlight=False)


class PhaseBars:
    """A progress bar for each phase of an edit, added when the phase begins."""

    def __init__(self, ready: Any, bar: Progress) -> None:
        self.totals = {"drag": ready.spec.drag.max_iterations}
        if ready.spec.inversion is not None:
            self.totals |= {"projection": ready.spec.inversion.steps, "tuning": ready.spec.inversion.tuning_steps}
        self.bar = bar
        self.tasks: dict[str, Any] = {}

    def show(self, step: Any) -> None:
        """Show a step on the bar of its phase."""
        phase = getattr(step, "phase", "drag")
        if phase not in self.tasks:
            self.tasks[phase] = self.bar.add_task(phase, total=self.totals[phase])
        quality = f", {step.psnr_db:.1f} dB" if phase != "drag" else ""
        self.bar.update(self.tasks[phase], completed=step.iteration, description=phase + quality)


def photo_source(crop: str | None) -> dict[str, Any]:
    """Return the value of --crop as a part of a job's source."""
    if crop is None:
        return {}
    if crop == "center":
        return {"crop": crop}
    count = crop.count(",") + 1
    if count == 4:
        return {"crop": {"box": parse_numbers(crop, 4, "--crop")}}
    numbers = parse_numbers(crop, 2 * len(FACE), "--crop")
    return {"crop": {"landmarks": {name: numbers[2 * k : 2 * k + 2] for k, name in enumerate(FACE)}}}


def parse_pair(text: str) -> dict[str, tuple[float, float]]:
    """Return X,Y:X,Y as a handle point and its target point, in pixels."""
    handle, _, target = text.partition(":")
    pair = {"handle": parse_numbers(handle, 2, "--point"), "target": parse_numbers(target, 2, "--point")}
    return {name: (x, y) for name, (x, y) in pair.items()}


def parse_numbers(text: str, count: int, option: str) -> list[float]:
    """Return the numbers of a text that are separated by commas.

    Raises:
        CommandError: there are not `count` of them; the message names the option.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != count:
        raise CommandError(f"{option} needs {count} numbers separated by commas, got {text!r}")
    return numbers


def parse_option(text: str, option: str) -> tuple[str, Any]:
    """Return NAME and VALUE of NAME=VALUE; the value as JSON if it is JSON, else as text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise CommandError(f"{option} must be NAME=VALUE, got {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
