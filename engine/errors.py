"""The errors of an edit. The same input would fail again, so a retry is useless.

EngineError
├── InvalidEdit            points, masks or options that no drag can start from
├── CheckpointMissing      the file is not there
├── CheckpointError        something is wrong with the file
│   ├── CheckpointDamaged      it cannot be read, or has another hash
│   └── CheckpointUnsupported  it is whole, but holds something else
├── DragDiverged           the loss or the latent of a drag stopped being finite
└── InversionDiverged      the loss of an inversion stopped being finite
"""

from engine.printable import printable


class EngineError(Exception):
    """The edit cannot be computed."""


class InvalidEdit(EngineError):
    """Points, masks or options that no drag can start from."""


class CheckpointMissing(EngineError):
    """The checkpoint file is not there."""


class CheckpointError(EngineError):
    """Something is wrong with a checkpoint file; the message is one printable line, whatever the file says."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class CheckpointDamaged(CheckpointError):
    """The checkpoint file cannot be read, or is not the one its hash names."""


class CheckpointUnsupported(CheckpointError):
    """The file holds something else than a generator that this engine computes."""


class DragDiverged(EngineError):
    """The loss or the latent of a drag stopped being finite."""


class InversionDiverged(EngineError):
    """The loss of an inversion stopped being finite."""
