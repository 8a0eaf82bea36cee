"""The errors that end a job with a code: the same job would fail the same way again, so none of them is retried."""

import re

import torch

from engine.errors import (
    CheckpointDamaged,
    CheckpointMissing,
    CheckpointUnsupported,
    DragDiverged,
    InvalidEdit,
    InversionDiverged,
)
from jobs.errors import ArtifactNotFound, ErrorCode, InvalidJob, JobNotFound, ManifestInvalid, ObjectMissing


class TimedOut(Exception):
    """The job ran longer than it may."""


OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")  # in a message of PyTorch's


def is_out_of_memory(error: Exception) -> bool:
    """Return whether the host or the device has run out of memory."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY)


def is_device_failure(error: Exception) -> bool:
    """Return whether every later call of the device will fail too: a CUDA context does not survive its first fault."""
    return isinstance(error, torch.AcceleratorError) or (isinstance(error, RuntimeError) and "CUDA error" in str(error))


def describe_breakdown(error: Exception) -> str:
    """Return what a client may know of an error that nobody expected: its kind and text, without folders of this host."""
    return re.sub(r"(?<![\w.:/])(/[^/\s'\":]+)+/", "", f"{type(error).__name__}: {error}")


CODES: dict[type[Exception], ErrorCode] = {
    CheckpointMissing: ErrorCode.CHECKPOINT_MISSING,
    CheckpointDamaged: ErrorCode.CHECKPOINT_DAMAGED,
    CheckpointUnsupported: ErrorCode.CHECKPOINT_DAMAGED,
    ManifestInvalid: ErrorCode.MANIFEST_INVALID,
    InvalidEdit: ErrorCode.INVALID_EDIT,
    InvalidJob: ErrorCode.INVALID_EDIT,
    ObjectMissing: ErrorCode.INPUT_MISSING,
    JobNotFound: ErrorCode.INPUT_MISSING,  # the parent, purged in the meantime
    ArtifactNotFound: ErrorCode.INPUT_MISSING,
    DragDiverged: ErrorCode.DIVERGED,
    InversionDiverged: ErrorCode.INVERSION_DIVERGED,
    TimedOut: ErrorCode.TIMEOUT,
}
MODEL_CODES = (ErrorCode.CHECKPOINT_MISSING, ErrorCode.CHECKPOINT_DAMAGED, ErrorCode.MANIFEST_INVALID)  # for the operator to mend
