"""The continuous factors of a face and the fixed map that gives them to every z.

Factor k of z is the k-th number of z normalized to unit mean square (as the mapping network does first), put through
the normal distribution function to be uniform in (0, 1), and stretched to its range. A truncated sample has its
numbers scaled by psi before that, so that psi = 0 is the mean face. Lengths are in units of half the image, or of
the head; angles in radians.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

SHAPE = {  # what is where: geometry and pose, rows 0-5 of w+
    "yaw": (-0.55, 0.55),
    "pitch": (-0.30, 0.30),
    "roll": (-0.12, 0.12),
    "x": (-0.06, 0.06),
    "y": (-0.04, 0.06),
    "size": (0.94, 1.08),
    "face_width": (0.46, 0.56),
    "face_height": (0.60, 0.70),
    "taper": (0.05, 0.40),
    "eye_spacing": (0.36, 0.46),
    "eye_height": (-0.16, -0.04),
    "eye_size": (0.19, 0.24),
    "eye_opening": (0.35, 1.0),
    "gaze_x": (-1.0, 1.0),
    "gaze_y": (-1.0, 1.0),
    "iris_size": (0.52, 0.66),
    "brow_height": (0.17, 0.28),
    "brow_tilt": (-0.06, 0.06),
    "brow_arch": (0.2, 1.4),
    "nose_length": (0.20, 0.32),
    "nose_width": (0.10, 0.16),
    "mouth_height": (0.46, 0.55),
    "mouth_width": (0.24, 0.40),
    "mouth_curve": (-0.10, 0.14),
    "mouth_opening": (0.0, 0.28),
    "lip_thickness": (0.035, 0.075),
    "hairline": (0.50, 0.80),
    "hair_volume": (0.06, 0.22),
    "hair_length": (0.0, 0.9),
    "ear_size": (0.09, 0.15),
}
COLOR = {  # how it looks: colors and light, rows 6 and up
    "skin_tone": (0.0, 1.0),
    "skin_warmth": (-1.0, 1.0),
    "hair_tone": (0.0, 1.0),
    "hair_warmth": (-1.0, 1.0),
    "iris_hue": (0.0, 1.0),
    "iris_tone": (0.25, 0.75),
    "lip_red": (0.0, 1.0),
    "shirt_red": (0.1, 0.9),
    "shirt_green": (0.1, 0.9),
    "shirt_blue": (0.1, 0.9),
    "back_red": (0.15, 0.95),
    "back_green": (0.15, 0.95),
    "back_blue": (0.15, 0.95),
    "back_slope": (-0.3, 0.3),
    "light_x": (-0.9, 0.9),
    "light_y": (-0.8, 0.3),
}
RANGES = SHAPE | COLOR
Z_DIM = 64  # the numbers of z past the factors change nothing


@dataclass(frozen=True)
class Factors:
    """The values of all factors of B faces, in the order of RANGES; each is also an attribute [B]."""

    values: Tensor  # [B, K]

    def __getattr__(self, name: str) -> Tensor:
        if name not in INDEX:
            raise AttributeError(name)
        return self.values[:, INDEX[name]]

    def __len__(self) -> int:
        return len(self.values)

    def slice(self, start: int, stop: int) -> "Factors":
        """Return the factors of some of the faces."""
        return Factors(self.values[start:stop])


INDEX = {name: k for k, name in enumerate(RANGES)}


def factors_of(z: Tensor, z_color: Tensor | None = None, psi: Tensor | float = 1.0) -> Factors:
    """Return the factors behind z.

    Args:
        z: [B, Z_DIM].
        z_color: where the colors and the light come from; default z.
        psi: truncation, a number or [B, 1].
    """
    shape, color = normalize(z), normalize(z if z_color is None else z_color)
    unit = torch.cat([shape[:, : len(SHAPE)], color[:, len(SHAPE) : len(RANGES)]], dim=1) * psi
    low, high = (torch.tensor(side, device=z.device, dtype=z.dtype) for side in zip(*RANGES.values(), strict=True))
    return Factors(low + (high - low) * torch.special.ndtr(unit))


def normalize(z: Tensor) -> Tensor:
    """Return z [B, Z_DIM] at unit mean square."""
    return z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
