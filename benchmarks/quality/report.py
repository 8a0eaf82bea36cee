"""What a study says: a table with intervals, as text, JSON, CSV and plots, and pictures of worst, median and best cases."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.quality.bootstrap import Interval, interval, paired
from benchmarks.quality.cases import Case
from benchmarks.quality.methods import Ending
from benchmarks.quality.runs import Outcome
from benchmarks.quality.studies import Study
from engine.media.overlay import draw_overlay
from engine.networks.stylegan2 import Generator, to_pixels

SHOWN = 4  # cases of each kind on the sheet
PICTURE = 256  # pixels


@dataclass(frozen=True)
class Column:
    """One figure of a table."""

    title: str  # with its unit
    value: Callable[[Outcome], float | None]
    statistic: Callable[..., np.ndarray] = np.mean


def p5(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """What 95 % of the values reach."""
    return np.asarray(np.quantile(values, 0.05, axis=axis))


COLUMNS = {
    "psnr_median_db": Column("PSNR, median dB", lambda o: o.psnr_db, np.median),
    "psnr_p5_db": Column("reached by 95 %, dB", lambda o: o.psnr_db, p5),
    "true_px": Column("true distance, px", lambda o: o.true_px),
    "tracker_px": Column("tracker's distance, px", lambda o: o.tracker_px),
    "gap_px": Column("|true - tracker|, median px", lambda o: gap(o), np.median),
    "within_1_percent": Column("all within 1 px, %", lambda o: within(o, 1)),
    "within_2_percent": Column("all within 2 px, %", lambda o: within(o, 2)),
    "lost_percent": Column("points lost, %", lambda o: o.lost_percent),
    "background_db": Column("background, median dB", lambda o: o.background_db, np.median),
    "mse_x100": Column("MSE x 100", lambda o: None if o.mse is None else 100 * o.mse),
    "psnr_db": Column("PSNR, dB", lambda o: o.psnr_db),
    "ssim": Column("SSIM", lambda o: o.ssim),
    "perceptual_x10": Column("LPIPS-like x 10", lambda o: None if o.perceptual is None else 10 * o.perceptual),
    "iterations": Column("iterations, median", lambda o: o.iterations, np.median),
    "seconds": Column("time, median s", lambda o: o.seconds, np.median),
}


def gap(outcome: Outcome) -> float | None:
    if outcome.true_px is None or outcome.tracker_px is None:
        return None
    return abs(outcome.true_px - outcome.tracker_px)


def within(outcome: Outcome, limit_px: float) -> float | None:
    return None if outcome.worst_px is None else 100.0 * (outcome.worst_px <= limit_px)


@dataclass(frozen=True)
class Line:
    """One method over the cases of one group."""

    group: str
    row: str
    cases: int
    figures: dict[str, Interval]
    against_plain: Interval | None  # paired: true distance of this row minus the plain row's


def summarize(study: Study, outcomes: Sequence[Outcome]) -> list[Line]:
    """One line for each group and method that has outcomes; intervals cover 95 % of the resampled statistics."""
    lines = []
    for group in study.groups:
        plain = {o.case: o for o in outcomes if (o.group, o.row) == (group, study.plain.name)}
        for method in study.methods:
            own = [o for o in outcomes if (o.group, o.row) == (group, method.name)]
            if own:
                lines.append(Line(group, method.name, len(own), figures(study, own), compare(own, plain)))
    return lines


def figures(study: Study, outcomes: list[Outcome]) -> dict[str, Interval]:
    found = {}
    for name in study.columns:
        values = [value for outcome in outcomes if (value := COLUMNS[name].value(outcome)) is not None]
        if values:
            found[name] = interval(values, COLUMNS[name].statistic)
    return found


def compare(outcomes: list[Outcome], plain: dict[int, Outcome]) -> Interval | None:
    both = [(plain[o.case].true_px, o.true_px) for o in outcomes if o.case in plain]
    known = [(old, new) for old, new in both if old is not None and new is not None]
    return paired([old for old, _ in known], [new for _, new in known]) if known else None


def write_report(study: Study, outcomes: Sequence[Outcome], question: dict[str, object], folder: Path) -> list[Line]:
    """Write NAME.json, NAME.csv and NAME.png; returns the table's lines."""
    lines = summarize(study, outcomes)
    document = {"title": study.title, "notes": study.notes, "question": question, "lines": [asdict(line) for line in lines]}
    (folder / f"{study.name}.json").write_text(json.dumps(document, indent=1))
    with (folder / f"{study.name}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        ends = [f"{name}{end}" for name in study.columns for end in ("", "_low", "_high")]
        writer.writerow(["group", "row", "cases", *ends, "against_plain", "against_plain_low", "against_plain_high"])
        for line in lines:
            found = [cell for name in study.columns for cell in cells(line.figures.get(name))]
            writer.writerow([line.group, line.row, line.cases, *found, *cells(line.against_plain)])
    plot(study, lines, folder / f"{study.name}.png")
    return lines


def cells(found: Interval | None) -> tuple[object, object, object]:
    return ("", "", "") if found is None else (round(found.value, 4), round(found.low, 4), round(found.high, 4))


def plot(study: Study, lines: list[Line], path: Path) -> None:
    """The first column as bars with their intervals, one panel a group."""
    import matplotlib.figure

    name = study.columns[0]
    groups = {group: [line for line in lines if line.group == group and name in line.figures] for group in study.groups}
    height = 1.2 + 0.32 * max(len(own) for own in groups.values())
    figure = matplotlib.figure.Figure(figsize=(5.0 * len(groups), height), layout="constrained")
    for axes, (group, own) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        found = [line.figures[name] for line in own]
        sides = np.array([[one.value - one.low for one in found], [one.high - one.value for one in found]]).clip(min=0)
        colors = ["#c05020" if line.row == study.plain.name else "#7090b0" for line in own]
        axes.barh([line.row for line in own], [one.value for one in found], xerr=sides, color=colors, ecolor="#404040")
        axes.invert_yaxis()
        axes.set(xlabel=COLUMNS[name].title, title=f"{group}, {own[0].cases if own else 0} cases")
    figure.suptitle(study.title)
    figure.savefig(path, dpi=110)


def choose_cases(study: Study, outcomes: Sequence[Outcome]) -> dict[str, list[tuple[str, int]]]:
    """(group, case) of the plain row's best, median and worst outcomes, by the study's first column."""
    value = COLUMNS[study.columns[0]].value
    ranked = [(v, o.group, o.case) for o in outcomes if o.row == study.plain.name and (v := value(o)) is not None]
    ranked.sort(reverse=study.columns[0] in ("background_db", "psnr_db", "psnr_median_db", "ssim"))
    middle = max(0, (len(ranked) - SHOWN) // 2)
    parts = {"best": ranked[:SHOWN], "median": ranked[middle : middle + SHOWN], "worst": ranked[-SHOWN:][::-1]}
    return {name: [(group, case) for _, group, case in part] for name, part in parts.items() if part}


def draw_sheet(study: Study, outcomes: Sequence[Outcome], generator: Generator, path: Path) -> None:
    """Best, median and worst cases of the plain row, run again: start above result with the points; no file if it has none."""
    cases = {(group, case.index): case for group, of in study.groups.items() for case in of}
    known = {(o.group, o.case): o for o in outcomes if o.row == study.plain.name and (o.group, o.case) in cases}
    if not known:
        return
    endings: dict[tuple[str, int], Ending] = {}
    rows = []
    for name, chosen in choose_cases(study, list(known.values())).items():
        for key in chosen:
            if key not in endings:
                endings[key] = study.plain.run(generator, cases[key])
        text = [label(name, study, known[key]) for key in chosen]
        strips = [draw_case(generator, cases[key], endings[key], line) for key, line in zip(chosen, text, strict=True)]
        rows.append(np.concatenate(strips, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    Image.fromarray(np.concatenate(padded)).save(path)


def label(name: str, study: Study, outcome: Outcome) -> str:
    column = COLUMNS[study.columns[0]]
    return f"{name}: {column.title.split(',')[0]} {column.value(outcome):.2f}, {outcome.group}"


def draw_case(generator: Generator, case: Case, ending: Ending, text: str) -> np.ndarray:
    movable = case.movable(generator.config.resolution)
    begun = generator.render(case.start) if case.picture is None else to_pixels(case.picture)[0]
    ended = (ending.generator or generator).render(ending.w)
    before = marked(begun, [case.handles], case.targets, movable)
    after = marked(ended, [case.handles, ending.handles], case.targets, movable)
    both = Image.fromarray(np.concatenate([before, after]))
    ImageDraw.Draw(both).text((4, 2), text, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(both)


def marked(pixels: np.ndarray, way: list[np.ndarray], targets: np.ndarray, movable: np.ndarray | None) -> np.ndarray:
    trajectory = [[(float(x), float(y)) for x, y in handles] for handles in way]
    overlay = draw_overlay(pixels, trajectory, [(float(x), float(y)) for x, y in targets], movable)
    return np.asarray(Image.fromarray(overlay).resize((PICTURE, PICTURE)))
