"""`dragqueue eval`: measures how good the edits of a checkpoint are, in a checkout of the repository."""

import importlib.util
import json
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cli.checkout import require_checkout
from cli.errors import CommandError
from cli.models import CHECKPOINTS, Checkpoints

if TYPE_CHECKING:
    from benchmarks.quality.methods import Method
    from benchmarks.quality.report import TableRow
    from benchmarks.quality.rulers import LandmarkRuler
    from benchmarks.quality.studies import Study, StudyContext

console = Console(stderr=True)
BAR = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())


class StudyProtocol(StrEnum):
    """One thing that `dragqueue eval` measures."""

    LANDMARKS = "landmarks"
    PAIRS = "pairs"
    ABLATION = "ablation"
    MASK = "mask"
    CYCLE = "cycle"
    BACKGROUND = "background"
    CHOICES = "choices"
    INVERSION = "inversion"
    FIDELITY = "fidelity"


def check_checkout(protocol: StudyProtocol) -> StudyProtocol:
    """Return the argument where the checkout is there, before options that are missing are complained about."""
    require_checkout()
    return protocol


def evaluate(
    protocol: Annotated[StudyProtocol, typer.Argument(help="What to measure.", callback=check_checkout, is_eager=True)],
    out: Annotated[Path, typer.Option(help="Folder for the table, plots and measurements; an existing run goes on.")],
    model: Annotated[str, typer.Option(help="A model of the manifest.")] = "demo-faces",
    pairs: Annotated[int, typer.Option(min=2, max=100_000, help="Cases in each group; for fidelity, seeds.")] = 100,
    comparisons: Annotated[int, typer.Option(min=1, max=100_000, help="Cases of rows besides no edit, paper, default.")] = 100,
    points: Annotated[str, typer.Option(help="How many points, of landmarks and choices: such as 1,5,all.")] = "1,5,all",
    rows: Annotated[str, typer.Option(help="Only these methods, comma-separated.")] = "",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the choice of cases.")] = 0,
    perceptual: Annotated[Path | None, typer.Option(help="Folder with SqueezeNet's and LPIPS' weights.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda:N.")] = "auto",
    checkpoints: Checkpoints = CHECKPOINTS,
) -> None:
    """Measure edits against where things truly are: a table with intervals, JSON, CSV, a plot and a contact sheet.

    Needs a checkout of the repository. The first `landmarks` trains a predictor for some minutes, unless --rows leaves it out.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError("eval draws plots with matplotlib: pip install 'dragqueue[eval]'")
    from benchmarks.quality.methods import service_options
    from benchmarks.quality.report import draw_sheet, write_report
    from benchmarks.quality.runs import MeasurementFile, run_study

    context = open_context(checkpoints, model, device, perceptual)
    if protocol is StudyProtocol.FIDELITY:
        measure_fidelity(context, pairs, out)
        return
    wanted = [name.strip() for name in rows.split(",") if name.strip()]
    study = choose_study(context, protocol, out, pairs, comparisons, seed, read_points(points), wanted)
    question: dict[str, object] = {"protocol": protocol.value, "model": model, "sha256": context.model.sha256, "seed": seed}
    try:
        file = MeasurementFile(out / f"{study.name}.jsonl", question | {"options": asdict(service_options(context.model, 1))})
    except ValueError as error:
        raise CommandError(str(error)) from error
    with Progress(*BAR, console=console) as bar:
        for _ in bar.track(
            run_study(study, context.generator, file), total=sum(1 for _ in study.cells()), description=study.name
        ):
            pass
    measurements = list(file.known.values())  # of earlier, longer runs too
    lines = write_report(study, measurements, question, out)
    draw_sheet(study, measurements, context.generator, out / f"{study.name}-sheet.png")
    print_table(study, lines)
    console.print(f"written to {out}", highlight=False)


def open_context(checkpoints: Path, model: str, device: str, perceptual: Path | None) -> "StudyContext":
    """Open the model with its ruler and encoder. Raises CommandError."""
    from benchmarks.quality.metrics import PerceptualDistance
    from benchmarks.quality.rulers import choose_ruler
    from benchmarks.quality.studies import StudyContext
    from cli.offline import open_model
    from worker.edit.inputs import open_encoder

    manifest, entry, generator = open_model(checkpoints, model, device)
    distance = None
    if perceptual is not None:
        try:
            distance = PerceptualDistance(perceptual).to(generator.device)
        except (OSError, KeyError, RuntimeError) as error:
            raise CommandError(f"--perceptual: {perceptual} does not hold SqueezeNet's and LPIPS' weights: {error}") from error
    return StudyContext(
        generator, entry, choose_ruler(generator, entry), distance, open_encoder(manifest, entry, generator.device)
    )


def choose_study(
    context: "StudyContext",
    protocol: StudyProtocol,
    out: Path,
    pairs: int,
    comparisons: int,
    seed: int,
    points: list[int],
    wanted: list[str],
) -> "Study":
    """Make the study with the rows that are wanted, all if none is named. Raises CommandError."""
    from benchmarks.quality import inversion, predictor, studies

    if protocol is StudyProtocol.LANDMARKS:
        methods = studies.comparison_methods(context)
        if studies.has_geometry(context) and (not wanted or predictor.NAME in wanted):
            methods.append(trained_predictor(context, out))
        study = studies.landmarks(context, pairs, comparisons, seed, points, methods)
    elif protocol is StudyProtocol.INVERSION:
        require_geometry(context, protocol.value)
        study = inversion.inversion_study(context, pairs, comparisons, seed)
    elif protocol is StudyProtocol.CHOICES:
        study = studies.choices(context, pairs, seed, points)
    else:
        if protocol in (StudyProtocol.PAIRS, StudyProtocol.BACKGROUND, StudyProtocol.MASK):
            require_geometry(context, protocol.value)
        study = studies.STUDIES[protocol.value](context, pairs, seed)
    known = [method.name for method in study.methods]
    if unknown := sorted(set(wanted) - set(known)):
        raise CommandError(f"--rows: there is no {', '.join(unknown)}; choose from: {', '.join(known)}")
    return replace(study, methods=[method for method in study.methods if not wanted or method.name in wanted])


def require_geometry(context: "StudyContext", protocol: str) -> "LandmarkRuler":
    """Return the ruler of landmarks. Raises CommandError: only the demo's models draw what is known."""
    from benchmarks.quality.rulers import LandmarkRuler

    if not isinstance(context.ruler, LandmarkRuler):
        raise CommandError(f"{protocol} needs a model whose geometry is known (geometry = 'faces' in the manifest)")
    return context.ruler


def trained_predictor(context: "StudyContext", out: Path) -> "Method":
    """Return the one-pass predictor, trained first unless the folder holds its weights."""
    from benchmarks.quality.predictor import one_pass_method

    out.mkdir(parents=True, exist_ok=True)
    with Progress(*BAR, console=console) as bar:
        task = bar.add_task("training the one-pass predictor", total=None)

        def show_step(step: int, steps: int, loss: float) -> None:
            bar.update(task, completed=step, total=steps, description=f"training the one-pass predictor, loss {loss:.3f}")

        return one_pass_method(context.generator, context.psi, out / "predictor.safetensors", show_step)


def read_points(text: str) -> list[int]:
    """Read 1,5,all as [1, 5, 28]. Raises CommandError."""
    from benchmarks.quality.studies import ALL_POINTS

    numbers = [ALL_POINTS if part.strip() == "all" else int(part) if part.strip().isdigit() else 0 for part in text.split(",")]
    if not all(1 <= number <= ALL_POINTS for number in numbers):
        raise CommandError(f"--points: give numbers from 1 to {ALL_POINTS} or all, separated by commas, not {text}")
    return numbers


def print_table(study: "Study", lines: list["TableRow"]) -> None:
    """Print a study's table."""
    from benchmarks.quality.report import COLUMNS

    table = Table(title=study.title, caption="; ".join(["95 % bootstrap intervals in brackets", *study.notes]))
    compared = any(line.against_plain for line in lines)
    last = (f"true distance less {study.plain.name}'s, px",) if compared else ()
    for title in ("", "method", "cases", *(COLUMNS[name].title for name in study.columns), *last):
        table.add_column(title, justify="left" if title in ("", "method") else "right")
    for line in lines:
        cells = [str(line.figures.get(name, "")) for name in study.columns]
        table.add_row(line.group, line.row, str(line.cases), *cells, *([str(line.against_plain or "")] if compared else []))
    Console(width=max(console.width, 60 + 22 * len(study.columns)) if not console.is_terminal else None).print(table)


def measure_fidelity(context: "StudyContext", seeds: int, out: Path) -> None:
    """Measure how well the checkpoint draws the faces behind its seeds, untruncated, which is hardest; print and write it."""
    from benchmarks.quality.fidelity import SEEDS_AT_ONCE, measure, summarize

    ruler, errors = require_geometry(context, "fidelity"), []
    with Progress(*BAR, console=console) as bar:
        parts = measure(context.generator, ruler.detector, range(seeds))
        for some in bar.track(parts, total=-(-seeds // SEEDS_AT_ONCE), description=f"fidelity, {SEEDS_AT_ONCE} seeds at a time"):
            errors.append(some)
    found = summarize(errors)
    out.mkdir(parents=True, exist_ok=True)
    document = asdict(found) | {"model": context.model.name, "sha256": context.model.sha256}
    (out / "fidelity.json").write_text(json.dumps(document, indent=1))
    table = Table(title=f"PSNR {found.psnr_db} dB over {found.seeds} seeds; the detector's floor are drawings")
    for title in ("landmarks", "drawing, median px", "p95 px", "G(z), median px", "p95 px"):
        table.add_column(title, justify="left" if title == "landmarks" else "right")
    for line in found.errors:
        figures = (line.drawn_median, line.drawn_p95, line.generated_median, line.generated_p95)
        table.add_row(line.landmarks, *(f"{figure:.2f}" for figure in figures))
    console.print(table)
