"""The values that a checkpoint is read into, and the checks of their types: what the file says is used only through these.

Each check names the value and says what it is instead of what it should be.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.checkpoints.budget import MAX_AXES, MAX_NAME
from engine.errors import CheckpointDamaged
from engine.printable import quote

MAX_LENGTH = 2**40  # of an axis; its tensor has to fit its storage too


@dataclass(frozen=True)
class PickledObject:
    """An object of a checkpoint, such as a module: the name of its class, and its attributes."""

    class_name: str
    state: dict[Any, Any]


@dataclass(frozen=True)
class TensorStorage:
    """The numbers behind one or more tensors."""

    values: np.ndarray  # one-dimensional


def expect_tensor(name: str, value: Any, axes: int | None = None) -> np.ndarray:
    """Return a value that must be an array of numbers.

    Args:
        axes: how many it must have; None: any number.

    Raises:
        CheckpointDamaged: it is something else.
    """
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise mismatch(name, "a tensor", value)
    if axes is not None and value.ndim != axes:
        raise CheckpointDamaged(f"{quote(name)} has the shape {list(value.shape)}, expected one of {axes} axes")
    return value


def expect_dict(name: str, value: Any) -> dict[str, Any]:
    """Return a value that must be a dictionary with names as keys. Raises CheckpointDamaged."""
    if not isinstance(value, dict):
        raise mismatch(name, "a dictionary", value)
    for key in value:
        if not isinstance(key, str):
            raise mismatch(f"a key of {name}", "a text", key)
    return value


def expect_object(name: str, value: Any) -> PickledObject:
    """Return a value that must be an object. Raises CheckpointDamaged."""
    if not isinstance(value, PickledObject):
        raise mismatch(name, "an object", value)
    return value


def expect_text(name: str, value: Any) -> str:
    """Return a value that must be a text no longer than a name. Raises CheckpointDamaged."""
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise mismatch(name, f"a text of at most {MAX_NAME} characters", value)
    return value


def expect_number(name: str, value: Any) -> float | None:
    """Return a value that must be a number or None. Raises CheckpointDamaged."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise mismatch(name, "a number", value)
    return value


def expect_integer(name: str, value: Any) -> int:
    """Return a value that must be a whole number of at least 0 that a shape can have. Raises CheckpointDamaged."""
    if type(value) is not int or not 0 <= value <= MAX_LENGTH:
        raise mismatch(name, f"a whole number from 0 to {MAX_LENGTH}", value)
    return value


def expect_integers(name: str, value: Any) -> tuple[int, ...]:
    """Return a value that must be a shape or strides. Raises CheckpointDamaged."""
    if not isinstance(value, (tuple, list)) or len(value) > MAX_AXES:
        raise mismatch(name, f"a list of at most {MAX_AXES} numbers", value)
    return tuple(expect_integer(name, number) for number in value)


def expect_pairs(name: str, value: Any) -> dict[str, Any]:
    """Return a value that must be a list of (name, value) as a dictionary; the last of equal names counts.

    Raises:
        CheckpointDamaged: it is something else.
    """
    if isinstance(value, dict):
        return expect_dict(name, value)
    if not isinstance(value, (list, tuple)):
        raise mismatch(name, "a list", value)
    pairs: dict[str, Any] = {}
    for pair in value:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise mismatch(f"an item of {name}", "a name and a value", pair)
        pairs[expect_text(f"a name of {name}", pair[0])] = pair[1]
    return pairs


def mismatch(name: str, expected: str, value: Any) -> CheckpointDamaged:
    """Return the error of a value of another type."""
    return CheckpointDamaged(f"{quote(name)} must be {expected}, is {quote(value)}")
