"""Runs every method on every case, keeping each outcome in a file, so that a stopped table goes on."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.quality.cases import Case
from benchmarks.quality.methods import Method
from benchmarks.quality.studies import Study
from engine.networks.stylegan2 import Generator


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One method on one case. Distances are pixels of the model's image, means over the points; None: not asked."""

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


class OutcomeFile:
    """outcomes.jsonl of a folder: what was measured, each line an outcome, the first what was asked."""

    def __init__(self, path: Path, question: dict[str, object]) -> None:
        """Raises ValueError when the file answers another question."""
        self.path = path
        self.known: dict[tuple[str, str, int], Outcome] = {}
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
            outcome = Outcome(**json.loads(line))
            self.known[outcome.group, outcome.row, outcome.case] = outcome

    def add(self, outcome: Outcome) -> None:
        self.known[outcome.group, outcome.row, outcome.case] = outcome
        with self.path.open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


def run(study: Study, generator: Generator, file: OutcomeFile) -> Iterator[Outcome]:
    """Every outcome of a study, known or new."""
    for group, method, case in study.cells():
        key = (group, method.name, case.index)
        if key not in file.known:
            file.add(judge(study, generator, group, method, case))
        yield file.known[key]


def judge(study: Study, generator: Generator, group: str, method: Method, case: Case) -> Outcome:
    ending = method.run(generator, case)
    return Outcome(
        group=group,
        row=method.name,
        case=case.index,
        iterations=ending.iterations,
        stop_reason=ending.stop_reason,
        seconds=ending.seconds,
        **study.score(case, ending),
    )
