"""The figures of the attacks: written as JSON and as a table, never asserted."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.abuse.arena import Arena, Outcome
from tests.abuse.memory import resident_mb
from tests.abuse.victim import PER_SECOND, Observation

KINDS = (*PER_SECOND, "event", "delivery")
HEAD = (
    "attack", "line", "victim: failed of", "p99 healthz", *(f"{kind}" for kind in KINDS[1:]), "worst ratio", "API MB",
    "decoders MB", "busy after", "client late", "attacker: answers", "CPU", "defects",
)  # fmt: skip


def quantile(values: Sequence[float], part: float) -> float:
    """Return a quantile by rank, the larger of two: of few values the 0.99 quantile is the greatest."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def latencies(observations: Sequence[Observation], kind: str) -> list[float]:
    return [seen.latency_s for seen in observations if seen.kind == kind]


def percentiles(observations: Sequence[Observation], part: float) -> dict[str, float]:
    """Return a quantile of each kind's latencies, in seconds."""
    found = {kind: latencies(observations, kind) for kind in KINDS}
    return {kind: round(quantile(values, part), 4) for kind, values in found.items() if values}


@dataclass
class Figures:
    """What was measured so far; every attack adds a line and writes the files anew."""

    folder: Path
    quiet: list[Observation]
    outcomes: list[Outcome] = field(default_factory=list)
    went_on_s: dict[str, float | None] = field(default_factory=dict)  # by attack

    def add(self, outcome: Outcome, went_on_s: float | None) -> str:
        """Record an outcome and return its line for people.

        Args:
            went_on_s: how long the service was busy after the attack; None when it was started anew.
        """
        self.outcomes.append(outcome)
        self.went_on_s[outcome.attack] = went_on_s
        (self.folder / "abuse.json").write_text(json.dumps(self.as_json(), indent=1))
        (self.folder / "abuse.md").write_text(self.as_markdown())
        return self.summary(outcome)

    def summary(self, outcome: Outcome) -> str:
        """Return what an outcome comes to, in a line."""
        slowest = max(outcome.observations, key=lambda seen: seen.latency_s)
        return (
            f"{outcome.attack}: {len(outcome.failures())} of {len(outcome.observations)} failed, "
            f"slowest {slowest.kind} {slowest.latency_s:.2f} s, healthz {max(latencies(outcome.observations, 'healthz')):.2f} s, "
            f"API {outcome.memory.api_mb:.0f} MB, answers {outcome.report.answers}"
        )

    def as_json(self) -> object:
        quiet = {"p50_s": percentiles(self.quiet, 0.5), "p99_s": percentiles(self.quiet, 0.99)}
        return {"quiet": quiet, "attacks": [self.outcome_as_json(outcome) for outcome in self.outcomes]}

    def outcome_as_json(self, outcome: Outcome) -> object:
        return {
            "attack": outcome.attack,
            "line": outcome.line,
            "requests": len(outcome.observations),
            "failures": outcome.failures(),
            "p50_s": percentiles(outcome.observations, 0.5),
            "p99_s": percentiles(outcome.observations, 0.99),
            "p99_ratio": self.ratios(outcome),
            "healthz_most_s": percentiles(outcome.observations, 1).get("healthz"),
            "went_on_s": self.went_on_s[outcome.attack],
            "late_s": round(outcome.late_s, 4),
            "memory": asdict(outcome.memory),
            "attacker": asdict(outcome.report),
            "defects": outcome.defects(),
        }

    def ratios(self, outcome: Outcome) -> dict[str, float]:
        """Return how many times its quiet p99 each kind's p99 was."""
        quiet = percentiles(self.quiet, 0.99)
        beside = percentiles(outcome.observations, 0.99)
        return {kind: round(value / quiet[kind], 1) for kind, value in beside.items() if kind in quiet}

    def as_markdown(self) -> str:
        quiet = [percentiles(self.quiet, part) for part in (0.5, 0.99)]
        rows = [["(quiet, p50)", "", "", *self.cells(quiet[0])], ["(quiet, p99)", "", "", *self.cells(quiet[1])]]
        rows += [self.row(outcome) for outcome in self.outcomes]
        head = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
        return "\n".join(["Latencies in seconds.", "", *head, *("| " + " | ".join(row) + " |" for row in rows), ""])

    def cells(self, values: dict[str, float]) -> list[str]:
        return [f"{values[kind]:.3f}" if kind in values else "" for kind in KINDS]

    def row(self, outcome: Outcome) -> list[str]:
        beside, went_on_s = percentiles(outcome.observations, 0.99), self.went_on_s[outcome.attack]
        kind, ratio = max(self.ratios(outcome).items(), key=lambda item: item[1])
        victim = [f"{len(outcome.failures())} of {len(outcome.observations)}", *self.cells(beside), f"{ratio:.1f} ({kind})"]
        memory = [f"{outcome.memory.api_mb:.0f}", f"{outcome.memory.children_mb:.0f}"]
        afterwards = "anew" if went_on_s is None else f"{went_on_s:.1f} s"
        answers = ", ".join(f"{what}: {times}" for what, times in sorted(outcome.report.answers.items()))
        client = [f"{outcome.late_s:.3f}", answers, f"{outcome.report.cpu_s:.1f} s"]
        return [outcome.attack, outcome.line, *victim, *memory, afterwards, *client, str(len(outcome.defects()))]


def measure_quiet(arena: Arena, seconds: float) -> list[Observation]:
    """Watch the victim while nobody attacks."""

    async def watch() -> list[Observation]:
        async with arena.victim() as victim:
            for kind in victim.kinds:  # the first of each is slower, and nobody's baseline
                await victim.kinds[kind]() if kind != "stream" else None
            async with victim.probing():
                await asyncio.sleep(seconds)
            return victim.observations

    observations = asyncio.run(watch())
    failed = [seen for seen in observations if seen.failure]
    assert not failed, failed
    assert resident_mb(arena.api.process.pid) > 0  # it can be read
    return observations
