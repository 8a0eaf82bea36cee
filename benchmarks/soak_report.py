"""The report of a soak: samples on disk, straight lines through them, what is left in the end, a plot.

A series leaks if the line through the last two thirds of the load rises too much; what is left is counted once every retention
is over.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

SAMPLES_FILE, SUMMARY_FILE = "samples.jsonl", "summary.json"
MEMORY_LIMIT = 1.0  # percent that a process may grow in 10 of 60 minutes, or in as large a part of a trial
RISE_LIMIT = 0.1  # of a count's line, as a part of its mean
LEAST_RISE = 5.0  # that a count may rise, however small it is
BLOCKS = 8  # of a series, whose means tell how uncertain its line is: neighboring samples are alike
GONE = ("jobs", "artifacts", "attempts", "messages", "job_objects", "job_folders")  # when nothing is retained


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The resources of one process."""

    pid: int
    memory_bytes: int  # resident; of postgres the private memory of all its processes, without the buffers they share
    files: int  # descriptors, sockets included
    threads: int
    connections: int  # sockets


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The state of the service at one time."""

    at_s: float  # since the load began
    loaded: bool  # whether the client still submits
    processes: dict[str, Usage]  # by role
    counts: dict[str, float]


@dataclass
class ClientRecord:
    """What the client has counted."""

    states: dict[str, int] = field(default_factory=dict)  # of jobs that have ended
    kinds: dict[str, int] = field(default_factory=dict)  # of submitted jobs
    statuses: dict[int, int] = field(default_factory=dict)  # of HTTP answers
    troubles: list[str] = field(default_factory=list)  # sentences about what must not happen
    downloaded_bytes: int = 0
    ran_s: float = 0.0  # of all jobs together


class SampleFile:
    """Samples that are written as they are taken, so that a run that is killed leaves them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / SAMPLES_FILE
        self.path.write_text("")
        self.samples: list[Sample] = []

    def add(self, sample: Sample) -> None:
        """Keep a sample and append it to the file."""
        self.samples.append(sample)
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(sample)) + "\n")


@dataclass(frozen=True, kw_only=True)
class TrendLine:
    """A straight line through a series."""

    begin: float  # the line's value at the first sample
    end: float  # and at the last
    minutes: float
    uncertainty: float  # standard error of the growth

    @property
    def growth(self) -> float:
        """Return by how much the line rises."""
        return self.end - self.begin

    @property
    def percent_per_10_minutes(self) -> float:
        """Return the growth in 10 minutes in percent of the begin."""
        return 100 * self.growth / max(abs(self.begin), 1e-9) * 10 / self.minutes


def fit_line(times_s: Sequence[float], values: Sequence[float]) -> TrendLine:
    """Return the least-squares line. Raises ValueError for fewer values than BLOCKS."""
    if len(values) < BLOCKS:
        raise ValueError(f"a line needs {BLOCKS} samples, there are {len(values)}: let it run for longer")
    slope, intercept = np.polyfit(times_s, values, 1)
    begin, end = (float(intercept + slope * at_s) for at_s in (times_s[0], times_s[-1]))
    means = [np.mean(block) for block in np.array_split(np.asarray(values) - intercept - slope * np.asarray(times_s), BLOCKS)]
    uncertainty = float(np.std(means) * np.sqrt(12 / BLOCKS))  # of evenly spaced means' line, from end to end
    return TrendLine(begin=begin, end=end, minutes=(times_s[-1] - times_s[0]) / 60, uncertainty=uncertainty)


@dataclass(frozen=True, kw_only=True)
class SeriesTrend:
    """The trend of one series: it leaks if it grows beyond the limit and beyond twice the uncertainty."""

    name: str  # such as "api memory_mb"
    begin: float
    end: float
    uncertainty: float  # standard error of the growth
    percent_per_10_minutes: float
    limit: float  # of memory in percent per 10 minutes, of everything else in the series' own unit
    leaks: bool


def judge_memory(name: str, line: TrendLine, load_minutes: float) -> SeriesTrend:
    """Compare the growth of a process's memory with the limit for a load of so many minutes."""
    limit = MEMORY_LIMIT * max(1.0, 60 / load_minutes)
    return make_trend(name, line, limit, line.percent_per_10_minutes > limit)


def judge_count(name: str, line: TrendLine) -> SeriesTrend:
    """Compare the growth of a count with its limit."""
    limit = max(LEAST_RISE, RISE_LIMIT * (line.begin + line.end) / 2)
    return make_trend(name, line, limit, line.growth > limit)


def make_trend(name: str, line: TrendLine, limit: float, beyond: bool) -> SeriesTrend:
    """Return the trend with rounded figures; `beyond` is whether the line grows beyond the limit."""
    return SeriesTrend(
        name=name, begin=round(line.begin, 2), end=round(line.end, 2), uncertainty=round(line.uncertainty, 2), limit=limit,
        percent_per_10_minutes=round(line.percent_per_10_minutes, 3), leaks=beyond and line.growth > 2 * line.uncertainty,
    )  # fmt: skip


def judge_series(samples: Sequence[Sample]) -> list[SeriesTrend]:
    """Return the trends over the last two thirds of the load, but for what must be gone in the end."""
    loaded = [sample for sample in samples if sample.loaded]
    minutes = loaded[-1].at_s / 60
    window = [sample for sample in loaded if sample.at_s >= loaded[-1].at_s / 3]
    trends = []
    for role in window[-1].processes:
        present = [sample for sample in window if role in sample.processes]
        times = [sample.at_s for sample in present]
        trends.append(
            judge_memory(f"{role} memory_mb", fit_line(times, read_series(present, role, "memory_bytes", 1e-6)), minutes)
        )
        for what in ("files", "threads", "connections"):
            trends.append(judge_count(f"{role} {what}", fit_line(times, read_series(present, role, what))))
    times = [sample.at_s for sample in window]
    for name in sorted(window[-1].counts.keys() - set(GONE)):
        trends.append(judge_count(name, fit_line(times, [sample.counts[name] for sample in window])))
    return trends


def read_series(samples: Iterable[Sample], role: str, what: str, unit: float = 1.0) -> list[float]:
    """Return one resource of a process over the samples, times the unit."""
    return [unit * float(getattr(sample.processes[role], what)) for sample in samples]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The result of a soak."""

    minutes: float  # of load
    complete: bool  # not interrupted
    figures: list[SeriesTrend]
    left: dict[str, float]  # counts once every retention was over
    replaced: list[str]  # roles whose process was not the same at the end
    tally: ClientRecord
    busy_percent: float  # of the time in which the worker ran a job

    @property
    def problems(self) -> list[str]:
        """Return a sentence for everything that is wrong."""
        leaks = [f"{one.name} grew from {one.begin:g} to {one.end:g}" for one in self.figures if one.leaks]
        left = [f"{count:g} {name} left when nothing is retained" for name, count in self.left.items() if count]
        replaced = [f"the {role} ended and was replaced" for role in self.replaced]
        return leaks + left + replaced + self.tally.troubles

    def write(self, path: Path) -> None:
        """Write the summary and its problems as JSON."""
        path.write_text(json.dumps(asdict(self) | {"problems": self.problems}, indent=1))


def summarize(samples: Sequence[Sample], tally: ClientRecord, complete: bool) -> Summary:
    """Judge the samples of a run. Raises ValueError, IndexError when there are too few."""
    minutes = [sample for sample in samples if sample.loaded][-1].at_s / 60
    pids = [{role: one.pid for role, one in sample.processes.items()} for sample in samples]
    return Summary(
        minutes=round(minutes, 2), complete=complete, figures=judge_series(samples), tally=tally,
        left={name: samples[-1].counts[name] for name in GONE} if complete else {},
        replaced=[role for role in pids[-1] if len({known[role] for known in pids if role in known}) > 1],
        busy_percent=round(100 * tally.ran_s / (60 * minutes), 1),
    )  # fmt: skip


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Draw each process's memory relative to that at one third of the load, its open files, and all counts."""
    import matplotlib.figure

    chart = matplotlib.figure.Figure(figsize=(9, 11), layout="constrained")
    memory, files, counts = chart.subplots(3, 1, sharex=True)
    third_s = [sample for sample in samples if sample.loaded][-1].at_s / 3
    for role in samples[-1].processes:
        present = [sample for sample in samples if role in sample.processes]
        times = [sample.at_s / 60 for sample in present]
        base = next(sample for sample in present if sample.at_s >= third_s).processes[role].memory_bytes
        label = f"{role}, {base / 1e6:.0f} MB"
        memory.plot(times, read_series(present, role, "memory_bytes", 100 / base), label=label)
        files.plot(times, read_series(present, role, "files"), label=role)
    for name in samples[-1].counts:
        counts.plot([sample.at_s / 60 for sample in samples], [sample.counts[name] for sample in samples], label=name)
    memory.set(ylabel="memory, % of that at one third", ylim=(80, 120))
    files.set(ylabel="open files")
    counts.set(ylabel="count (database_mb: MB)", xlabel="minutes", yscale="symlog", ylim=(0, None))
    for axes in (memory, files, counts):
        axes.axvline(third_s / 60, color="#c0c0c0", linestyle=":")
        axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    chart.savefig(path, dpi=110)


def print_summary(summary: Summary, console: Console) -> None:
    """Print the growth of memory, the ends of jobs and the problems."""
    for one in summary.figures:
        if one.name.endswith("memory_mb"):
            growth = f"{one.end - one.begin:+.1f} +- {one.uncertainty:.1f} MB"
            slope = f"{one.percent_per_10_minutes:+.2f} % per 10 min (limit {one.limit:.1f} %)"
            role = one.name.removesuffix(" memory_mb")
            console.print(f"{role}: {one.begin:.1f} MB, {growth}, {slope}", highlight=False, soft_wrap=True)
    states = ", ".join(f"{times} {state}" for state, times in summary.tally.states.items())
    answers = ", ".join(f"{times} times {status}" for status, times in sorted(summary.tally.statuses.items()))
    ended = f"jobs: {states}; worker busy {summary.busy_percent:.0f} % of the time; HTTP: {answers}"
    console.print(ended, highlight=False, soft_wrap=True)
    for problem in summary.problems:
        console.print(f"problem: {problem}", style="red", highlight=False, soft_wrap=True)


def load_samples(folder: Path) -> list[Sample]:
    """Read the samples that a run has written; the last line of a killed run may be incomplete."""
    samples: list[Sample] = []
    for line in (folder / SAMPLES_FILE).read_text().splitlines():
        try:
            document: Mapping[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            break
        processes = {role: Usage(**one) for role, one in document["processes"].items()}
        samples.append(Sample(**{**document, "processes": processes}))
    return samples


def load_client_record(folder: Path) -> ClientRecord:
    """Read what the client of an ended run has counted."""
    path = folder / SUMMARY_FILE
    return ClientRecord(**json.loads(path.read_text())["tally"]) if path.exists() else ClientRecord()


def write_report(samples: Sequence[Sample], tally: ClientRecord, complete: bool, folder: Path, console: Console) -> int:
    """Write summary and plot, print the summary; return the exit code."""
    try:
        summary = summarize(samples, tally, complete)
    except (IndexError, ValueError) as error:
        console.print(f"nothing to judge: {'; '.join([str(error), *tally.troubles])}", style="red")
        return 1
    summary.write(folder / SUMMARY_FILE)
    plot(samples, folder / "soak.png")
    print_summary(summary, console)
    return int(not complete or bool(summary.problems))
