"""What can go wrong in an edit. The same input would fail again, so none of these is worth a retry.

EngineError
├── InvalidEdit         points, masks or options that no drag can start from
├── CheckpointMissing   the file is not there
├── CheckpointDamaged   the file is not what it should be
├── CheckpointUnsupported  the file is whole, but holds something else
├── DragDiverged        the loss or the latent stopped being a number
└── InversionDiverged   the same, while a photo was inverted
"""


class EngineError(Exception):
    """This edit cannot be computed."""


class InvalidEdit(EngineError):
    """Points, masks or options that no drag can start from."""


class CheckpointMissing(EngineError):
    """The checkpoint file is not there."""


class CheckpointDamaged(EngineError):
    """The checkpoint file cannot be read, or is not the one its hash names."""


class CheckpointUnsupported(EngineError):
    """The file holds something else than a generator that this engine computes."""


class DragDiverged(EngineError):
    """The loss or the latent stopped being a number."""


class InversionDiverged(EngineError):
    """The loss stopped being a number while a photo was inverted."""
