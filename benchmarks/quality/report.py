"""Reports of a study: a table with intervals as JSON, CSV and plot, and pictures of the best, median and worst cases."""

import csv
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.quality.bootstrap import Interval, interval, paired
from benchmarks.quality.cases import Case
from benchmarks.quality.methods import EditedCase
from benchmarks.quality.runs import Measurement
from benchmarks.quality.studies import Study
from engine.media.overlay import draw_overlay
from engine.networks.stylegan2 import Generator, to_pixels

SHOWN = 4  # cases of each kind on the sheet
PICTURE = 256  # pixels


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str  # with its unit
    value: Callable[[Measurement], float | None]
    statistic: Callable[..., np.ndarray] = np.mean


def fifth_percentile(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Return the value that 95 % of the values reach."""
    return np.asarray(np.quantile(values, 0.05, axis=axis))


COLUMNS = {
    "psnr_median_db": Column("PSNR, median dB", lambda o: o.psnr_db, np.median),
    "psnr_p5_db": Column("reached by 95 %, dB", lambda o: o.psnr_db, fifth_percentile),
    "true_px": Column("true distance, px", lambda o: o.true_px),
    "tracker_px": Column("tracker's distance, px", lambda o: o.tracker_px),
    "gap_px": Column("|true - tracker|, median px", lambda o: tracker_gap_px(o), np.median),
    "within_1_percent": Column("all within 1 px, %", lambda o: is_within(o, 1)),
    "within_2_percent": Column("all within 2 px, %", lambda o: is_within(o, 2)),
    "lost_percent": Column("points lost, %", lambda o: o.lost_percent),
    "background_db": Column("background, median dB", lambda o: o.background_db, np.median),
    "mse_x100": Column("MSE x 100", lambda o: None if o.mse is None else 100 * o.mse),
    "psnr_db": Column("PSNR, dB", lambda o: o.psnr_db),
    "ssim": Column("SSIM", lambda o: o.ssim),
    "perceptual_x10": Column("LPIPS-like x 10", lambda o: None if o.perceptual is None else 10 * o.perceptual),
    "iterations": Column("iterations, median", lambda o: o.iterations, np.median),
    "seconds": Column("time, median s", lambda o: o.seconds, np.median),
}


def tracker_gap_px(measurement: Measurement) -> float | None:
    """Return how far the true and the tracker's distance differ."""
    if measurement.true_px is None or measurement.tracker_px is None:
        return None
    return abs(measurement.true_px - measurement.tracker_px)


def is_within(measurement: Measurement, limit_px: float) -> float | None:
    """Return 100 if every point is within the limit, else 0, so that the mean is a percentage."""
    return None if measurement.worst_px is None else 100.0 * (measurement.worst_px <= limit_px)


@dataclass(frozen=True)
class TableRow:
    """One method's figures over the cases of one group."""

    group: str
    row: str
    cases: int
    figures: dict[str, Interval]
    against_plain: Interval | None  # true distance of this row minus the plain row's, paired by case


def summarize(study: Study, measurements: Sequence[Measurement]) -> list[TableRow]:
    """Return a row for each group and method that has measurements."""
    lines = []
    for group in study.groups:
        plain = {o.case: o for o in measurements if (o.group, o.row) == (group, study.plain.name)}
        for method in study.methods:
            own = [o for o in measurements if (o.group, o.row) == (group, method.name)]
            if own:
                lines.append(TableRow(group, method.name, len(own), compute_figures(study, own), compare(own, plain)))
    return lines


def compute_figures(study: Study, measurements: list[Measurement]) -> dict[str, Interval]:
    """Return the interval of every column that the measurements have."""
    found = {}
    for name in study.columns:
        values = [value for measurement in measurements if (value := COLUMNS[name].value(measurement)) is not None]
        if values:
            found[name] = interval(values, COLUMNS[name].statistic)
    return found


def compare(measurements: list[Measurement], plain: dict[int, Measurement]) -> Interval | None:
    """Return the paired difference of the true distances to the plain row's, by case; None if they have no case in common."""
    both = [(plain[o.case].true_px, o.true_px) for o in measurements if o.case in plain]
    known = [(old, new) for old, new in both if old is not None and new is not None]
    return paired([old for old, _ in known], [new for _, new in known]) if known else None


def write_report(study: Study, measurements: Sequence[Measurement], question: dict[str, object], folder: Path) -> list[TableRow]:
    """Write NAME.json, NAME.csv and NAME.png; return the table's rows."""
    lines = summarize(study, measurements)
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
    """Return the three cells of an interval in the CSV file."""
    return ("", "", "") if found is None else (round(found.value, 4), round(found.low, 4), round(found.high, 4))


def plot(study: Study, lines: list[TableRow], path: Path) -> None:
    """Draw the first column as bars with their intervals, a panel for each group."""
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


def choose_cases(study: Study, measurements: Sequence[Measurement]) -> dict[str, list[tuple[str, int]]]:
    """Return (group, case) of the plain row's best, median and worst measurements, by the study's first column."""
    value = COLUMNS[study.columns[0]].value
    ranked = [(v, o.group, o.case) for o in measurements if o.row == study.plain.name and (v := value(o)) is not None]
    ranked.sort(reverse=study.columns[0] in ("background_db", "psnr_db", "psnr_median_db", "ssim"))
    middle = max(0, (len(ranked) - SHOWN) // 2)
    parts = {"best": ranked[:SHOWN], "median": ranked[middle : middle + SHOWN], "worst": ranked[-SHOWN:][::-1]}
    return {name: [(group, case) for _, group, case in part] for name, part in parts.items() if part}


def draw_sheet(study: Study, measurements: Sequence[Measurement], generator: Generator, path: Path) -> None:
    """Run the plain row's best, median and worst cases again and draw them: start above result, with the points.

    No file is written if the plain row has no measurement.
    """
    cases = {(group, case.index): case for group, members in study.groups.items() for case in members}
    known = {(o.group, o.case): o for o in measurements if o.row == study.plain.name and (o.group, o.case) in cases}
    if not known:
        return
    edited_cases: dict[tuple[str, int], EditedCase] = {}
    rows = []
    for name, chosen in choose_cases(study, list(known.values())).items():
        for key in chosen:
            if key not in edited_cases:
                edited_cases[key] = study.plain.run(generator, cases[key])
        text = [case_label(name, study, known[key]) for key in chosen]
        strips = [draw_case(generator, cases[key], edited_cases[key], line) for key, line in zip(chosen, text, strict=True)]
        rows.append(np.concatenate(strips, axis=1))
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    Image.fromarray(np.concatenate(padded)).save(path)


def case_label(name: str, study: Study, measurement: Measurement) -> str:
    """Return the text on a case's picture."""
    column = COLUMNS[study.columns[0]]
    return f"{name}: {column.title.split(',')[0]} {column.value(measurement):.2f}, {measurement.group}"


def draw_case(generator: Generator, case: Case, edited: EditedCase, text: str) -> np.ndarray:
    """Draw a case's start above its result, with points, mask and text; [H, W, 3]."""
    movable = case.movable(generator.config.resolution)
    begun = generator.render(case.start) if case.picture is None else to_pixels(case.picture)[0]
    ended = (edited.generator or generator).render(edited.w)
    before = draw_points(begun, [case.handles], case.targets, movable)
    after = draw_points(ended, [case.handles, edited.handles], case.targets, movable)
    both = Image.fromarray(np.concatenate([before, after]))
    ImageDraw.Draw(both).text((4, 2), text, fill=(255, 255, 255), stroke_width=1, stroke_fill=(0, 0, 0))
    return np.asarray(both)


def draw_points(pixels: np.ndarray, path: list[np.ndarray], targets: np.ndarray, movable: np.ndarray | None) -> np.ndarray:
    """Draw the handles' path, the targets and the mask on a picture, at the sheet's size."""
    trajectory = [[(float(x), float(y)) for x, y in handles] for handles in path]
    overlay = draw_overlay(pixels, trajectory, [(float(x), float(y)) for x, y in targets], movable)
    return np.asarray(Image.fromarray(overlay).resize((PICTURE, PICTURE)))
