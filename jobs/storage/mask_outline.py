"""What is kept of a movable mask beside its row, so that a submission is checked without its pixels.

The mask is divided into cells, CELLS x CELLS at most: of each it is kept whether any of its pixels is set, and whether all are.
"""

import math
import struct
from dataclasses import dataclass
from typing import Self

import numpy as np

CELLS = 256  # along the longer side
HEADER = struct.Struct(">III")  # side of a cell in pixels, rows of cells, columns of cells


@dataclass(frozen=True, kw_only=True)
class MaskOutline:
    """The cells of a mask. At most 16 kB when stored."""

    cell: int  # side in pixels
    some: np.ndarray  # bool [rows, columns]: a pixel of the cell is set
    every: np.ndarray  # bool [rows, columns]: all of its pixels are set, and none lies beyond the mask's edge

    @classmethod
    def of(cls, mask: np.ndarray) -> Self:
        """Return the outline of a mask, bool [H, W]."""
        height, width = mask.shape
        cell = math.ceil(max(height, width) / CELLS)
        starts = [np.arange(0, side, cell) for side in (height, width)]
        some = np.logical_or.reduceat(np.logical_or.reduceat(mask, starts[1], axis=1), starts[0], axis=0)
        every = np.logical_and.reduceat(np.logical_and.reduceat(mask, starts[1], axis=1), starts[0], axis=0)
        every[height // cell :] = False
        every[:, width // cell :] = False
        return cls(cell=cell, some=some, every=every)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Return an outline that was stored."""
        cell, rows, columns = HEADER.unpack_from(data)
        bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8, offset=HEADER.size), count=2 * rows * columns)
        some, every = bits.astype(bool).reshape(2, rows, columns)
        return cls(cell=cell, some=some, every=every)

    def to_bytes(self) -> bytes:
        """Return the outline as it is stored."""
        return HEADER.pack(self.cell, *self.some.shape) + np.packbits(np.stack([self.some, self.every])).tobytes()

    def is_empty(self) -> bool:
        """Return whether no pixel of the mask is set."""
        return not self.some.any()

    def touches(self, left: int, top: int, right: int, bottom: int) -> bool:
        """Return whether a pixel may be set in these columns and rows of the mask, right and bottom exclusive.

        False is certain; True is certain to the width of a cell.
        """
        cell = self.cell
        return bool(self.some[top // cell : -(-bottom // cell), left // cell : -(-right // cell)].any())

    def full_squares(self, side: float) -> np.ndarray:
        """Return the centers (x, y) [N, 2] of squares of cells, at least `side` pixels wide, of which every pixel is set."""
        cells = math.ceil(side / self.cell)
        rows, columns = self.every.shape
        if cells > min(rows, columns):
            return np.empty((0, 2))
        sums = np.zeros((rows + 1, columns + 1), dtype=np.int32)
        sums[1:, 1:] = self.every.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
        inside = sums[cells:, cells:] - sums[:-cells, cells:] - sums[cells:, :-cells] + sums[:-cells, :-cells]
        y, x = np.nonzero(inside == cells * cells)
        return (np.stack([x, y], axis=-1) + cells / 2) * self.cell - 0.5
