"""What a running attempt saves so that the next one goes on from there: a safetensors object, named by the job's row."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from engine.drag.run import DragState
from engine.inversion.inversion import InversionState
from jobs.models.manifest import ModelEntry
from worker.edit.artifacts import VERSION, WrittenSteps
from worker.edit.inputs import CurvePoint

FORMAT = 1  # of the object; others are not read


class ResumeStateUnreadable(Exception):
    """The saved state is of no use: the attempt starts from the beginning."""


@dataclass(frozen=True, kw_only=True)
class ResumeState:
    """How far an attempt is: in the inversion when `inversion` is given, else in the drag."""

    made_by: str  # model and version that the state belongs to
    spent_s: float  # by this job's attempts, of its run_timeout_s
    curve: Sequence[CurvePoint]  # of the inversion so far
    inversion: InversionState | None = None
    start: Tensor | None = None  # w+ [1, L, D] where the drag starts
    tuned: bool = False  # whether its generator is one tuned to the photo, which lies beside the artifacts
    drag: DragState | None = None  # None: the drag has not begun
    written: WrittenSteps = field(default_factory=WrittenSteps)

    def encode(self) -> bytes:
        """Return the state as an object's content."""
        tensors: dict[str, Tensor] = {}
        for name, state in (("inversion", self.inversion), ("drag", self.drag)):
            if state is not None:
                tensors |= {f"{name}/{key}": tensor for key, tensor in state.tensors().items()}
        tensors |= {name: t for name, t in (("start", self.start), ("rows", self.written.rows)) if t is not None}
        header = {
            "format": FORMAT, "made_by": self.made_by, "spent_s": self.spent_s, "tuned": self.tuned,
            "curve": [asdict(point) for point in self.curve],
            "trajectory": self.written.trajectory, "frames": self.written.frames,
        }  # fmt: skip
        return save(
            {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, {"progress": json.dumps(header)}
        )

    @classmethod
    def decode(cls, data: bytes, made_by: str) -> "ResumeState":
        """Return the state that an object holds. Raises ResumeStateUnreadable, also for one of another model or version."""
        try:
            tensors, header = load(data), read_header(data)
            if header["format"] != FORMAT:
                raise ResumeStateUnreadable(f"its format is {header['format']}, this worker's is {FORMAT}")
            if header["made_by"] != made_by:
                raise ResumeStateUnreadable(f"it is of {header['made_by']}, this is {made_by}")
            inversion, drag = tensors_under(tensors, "inversion/"), tensors_under(tensors, "drag/")
            return cls(
                made_by=made_by,
                spent_s=header["spent_s"],
                curve=[CurvePoint(**point) for point in header["curve"]],
                inversion=InversionState.read(inversion) if inversion else None,
                start=tensors.get("start"),
                tuned=header["tuned"],
                drag=DragState.read(drag) if drag else None,
                written=WrittenSteps(trajectory=header["trajectory"], frames=header["frames"], rows=tensors.get("rows")),
            )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ResumeStateUnreadable(f"{type(error).__name__}: {error}") from error


def made_by(model: ModelEntry) -> str:
    """Return the maker of a state: the model's weights and this version. Attempts resume only from states of their own maker."""
    return f"{model.sha256} by {VERSION}"


def tensors_under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose name begins so, named without the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def read_header(data: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file: eight bytes of length, then JSON."""
    length = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(json.loads(data[8 : 8 + length])["__metadata__"]["progress"])
    return header
