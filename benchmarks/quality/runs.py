"""Runs every method on every case and keeps each measurement in a file, so that a stopped study can go on."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.quality.cases import Case
from benchmarks.quality.methods import Method
from benchmarks.quality.studies import Study
from engine.networks.stylegan2 import Generator


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The figures of one method on one case.

    Distances are pixels of the model's image, means over the points; None: the study does not measure it.
    """

    group: str  # which cases, such as "5 points"
    row: str  # which method
    case: int
    true_px: float | None = None  # from the targets, by the ruler
    worst_px: float | None = None  # the same of the farthest point
    tracker_px: float | None = None  # by the method's own account
    lost_percent: float | None = None  # points that tracker and ruler see more than LOST_PX apart
    mse: float | None = None  # against the goal or the start; values in [0, 1]
    psnr_db: float | None = None
    ssim: float | None = None
    perceptual: float | None = None  # LPIPS-like (SqueezeNet)
    background_db: float | None = None  # PSNR outside the movable mask
    iterations: int
    stop_reason: str
    seconds: float


class MeasurementFile:
    """A study's file of JSON lines: the first is the question, each other a measurement."""

    def __init__(self, path: Path, question: dict[str, object]) -> None:
        """Read the file, or make it. Raises ValueError when it holds another question."""
        self.path = path
        self.known: dict[tuple[str, str, int], Measurement] = {}
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(question) + "\n")
            return
        first, *lines, partial = path.read_text().split("\n")
        if json.loads(first) != question:
            raise ValueError(f"{path} holds another run ({first}); choose another folder or delete it")
        if partial:  # stopped while writing
            path.write_text("\n".join([first, *lines, ""]))
        for line in lines:
            measurement = Measurement(**json.loads(line))
            self.known[measurement.group, measurement.row, measurement.case] = measurement

    def add(self, measurement: Measurement) -> None:
        """Keep a measurement and append it to the file."""
        self.known[measurement.group, measurement.row, measurement.case] = measurement
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(measurement)) + "\n")


def run_study(study: Study, generator: Generator, file: MeasurementFile) -> Iterator[Measurement]:
    """Yield every measurement of a study: those that the file knows, and new ones."""
    for group, method, case in study.cells():
        key = (group, method.name, case.index)
        if key not in file.known:
            file.add(measure_case(study, generator, group, method, case))
        yield file.known[key]


def measure_case(study: Study, generator: Generator, group: str, method: Method, case: Case) -> Measurement:
    """Run a method on a case and measure the result."""
    edited = method.run(generator, case)
    return Measurement(
        group=group,
        row=method.name,
        case=case.index,
        iterations=edited.iterations,
        stop_reason=edited.stop_reason,
        seconds=edited.seconds,
        **study.score(case, edited),
    )
