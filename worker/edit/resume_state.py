"""What a running attempt leaves so that the next one goes on from there: a safetensors object, named by the job's row."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from engine.drag.run import DragState
from engine.inversion.inversion import InversionState
from jobs.models.manifest import ModelEntry
from worker.edit.artifacts import VERSION, Past
from worker.edit.inputs import CurvePoint

FORMAT = 1  # of the object; others are not read


class ResumeStateUnreadable(Exception):
    """The attempt begins from the start."""


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """How far an attempt is: in the inversion when `inversion` is given, else in the drag."""

    made_by: str  # model and version that the state belongs to
    spent_s: float  # by this job's attempts, of its run_timeout_s
    curve: list[CurvePoint]  # of the inversion so far
    inversion: InversionState | None = None
    start: Tensor | None = None  # w+ [1, L, D] where the drag begins
    tuned: bool = False  # whether its generator is one tuned to the photo, which lies beside the artifacts
    drag: DragState | None = None  # None: it has not begun
    past: Past = field(default_factory=Past)

    def encode(self) -> bytes:
        tensors: dict[str, Tensor] = {}
        for name, state in (("inversion", self.inversion), ("drag", self.drag)):
            if state is not None:
                tensors |= {f"{name}/{key}": tensor for key, tensor in state.tensors().items()}
        tensors |= {name: t for name, t in (("start", self.start), ("rows", self.past.rows)) if t is not None}
        words = {
            "format": FORMAT, "made_by": self.made_by, "spent_s": self.spent_s, "tuned": self.tuned,
            "curve": [asdict(point) for point in self.curve],
            "trajectory": self.past.trajectory, "frames": self.past.frames,
        }  # fmt: skip
        return save(
            {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, {"progress": json.dumps(words)}
        )

    @classmethod
    def decode(cls, data: bytes, made_by: str) -> "ResumeState":
        """Raises ResumeStateUnreadable, also for one of another model or version."""
        try:
            tensors, words = load(data), read_words(data)
            if words["format"] != FORMAT:
                raise ResumeStateUnreadable(f"its format is {words['format']}, this worker's is {FORMAT}")
            if words["made_by"] != made_by:
                raise ResumeStateUnreadable(f"it is of {words['made_by']}, this is {made_by}")
            inversion, drag = part(tensors, "inversion/"), part(tensors, "drag/")
            return cls(
                made_by=made_by,
                spent_s=words["spent_s"],
                curve=[CurvePoint(**point) for point in words["curve"]],
                inversion=InversionState.read(inversion) if inversion else None,
                start=tensors.get("start"),
                tuned=words["tuned"],
                drag=DragState.read(drag) if drag else None,
                past=Past(trajectory=words["trajectory"], frames=words["frames"], rows=tensors.get("rows")),
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ResumeStateUnreadable(f"{type(error).__name__}: {error}") from error


def made_by(model: ModelEntry) -> str:
    return f"{model.sha256} by {VERSION}"


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_words(data: bytes) -> dict[str, Any]:
    """The header's metadata: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    words: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["progress"])
    return words
