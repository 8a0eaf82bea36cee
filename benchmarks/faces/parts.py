"""The parts of a face as bent ellipses in frames of the head, and the landmarks that lie on them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.faces.factors import Factors
from benchmarks.faces.head import Frame, Head

PARTS = (
    "background", "hair", "neck", "shirt", "ear_left", "ear_right", "skin",
    "eye_left", "eye_right", "iris_left", "iris_right", "brow_left", "brow_right", "nose", "lips", "mouth",
)  # fmt: skip
LANDMARKS = (
    "pupil_left", "pupil_right", "eye_left_outer", "eye_left_inner", "eye_right_inner", "eye_right_outer",
    "eye_left_top", "eye_left_bottom", "eye_right_top", "eye_right_bottom",
    "brow_left_outer", "brow_left_middle", "brow_left_inner", "brow_right_inner", "brow_right_middle", "brow_right_outer",
    "nose_bridge", "nose_tip", "nostril_left", "nostril_right",
    "mouth_left", "mouth_right", "lip_top", "lip_bottom", "mouth_top", "mouth_bottom", "chin", "hairline",
)  # fmt: skip
SIDES = {"left": -1, "right": 1}  # of the image


@dataclass(frozen=True)
class Ellipse:
    """The points (u, v) of a frame with (u / ru)^2 + (v' / rv)^2 < 1, where v' = v - slope u - bend u^2.

    Below the center v' counts 1 / stretch of its length.
    """

    frame: Frame
    radius_u: Tensor  # [B]
    radius_v: Tensor  # [B]
    slope: Tensor | float = 0.0
    bend: Tensor | float = 0.0
    stretch: Tensor | float = 1.0

    def at(self, u: float, v: float) -> Tensor:
        """Return the image point [B, 2] of the ellipse's own coordinates: (1, 0) is its right end, (0, 1) its bottom."""
        across = u * self.radius_u
        stretch = self.stretch if v > 0 else 1.0
        return self.frame.at(across, v * self.radius_v * stretch + self.slope * across + self.bend * across.square())


class Anatomy:
    """Every part of B faces."""

    def __init__(self, factors: Factors) -> None:
        f = self.factors = factors
        self.head = Head(f)
        self.round = f.face_width / f.face_height  # radius_v = radius_u * round makes a circle
        self.eyes = {side: self.eye(sign) for side, sign in SIDES.items()}
        self.lashes = {side: self.lash(eye) for side, eye in self.eyes.items()}
        self.irises = {side: self.iris(eye) for side, eye in self.eyes.items()}
        self.pupils = {side: scaled(iris, 0.5) for side, iris in self.irises.items()}
        self.brows = {side: self.brow(sign) for side, sign in SIDES.items()}
        self.ears = {side: self.ear(sign) for side, sign in SIDES.items()}
        self.tip_v = f.eye_height + f.nose_length + 0.08
        tip = self.head.patch(0.0, self.tip_v, lift=1.18)
        self.nose = Ellipse(tip, f.nose_width, 0.55 * f.nose_width)
        self.bridge = Ellipse(
            self.head.patch(0.0, f.eye_height + 0.5 * f.nose_length, lift=1.1), 0 * self.round + 0.04, 0.55 * f.nose_length
        )
        self.nostrils = {side: self.nostril(sign) for side, sign in SIDES.items()}
        self.lips = self.mouth(f.mouth_width, 0.5 * f.mouth_opening + f.lip_thickness)
        self.inside = self.mouth(0.88 * f.mouth_width, 0.5 * f.mouth_opening + 0.010)
        self.teeth = Ellipse(self.inside.frame.moved(0.0, -0.5 * f.mouth_opening), 0.7 * f.mouth_width, 0.04 + 0 * self.round)

    def eye(self, sign: int) -> Ellipse:
        f = self.factors
        frame = self.head.patch(sign * f.eye_spacing, f.eye_height)
        return Ellipse(frame, f.eye_size, 0.75 * f.eye_size * self.round * f.eye_opening)

    def lash(self, eye: Ellipse) -> Ellipse:
        return Ellipse(eye.frame.moved(0.0, -0.015), 1.12 * eye.radius_u, eye.radius_v + 0.030)

    def iris(self, eye: Ellipse) -> Ellipse:
        f = self.factors
        radius = f.iris_size * f.eye_size
        frame = eye.frame.moved(0.30 * f.eye_size * f.gaze_x, 0.16 * f.eye_size * f.gaze_y)
        return Ellipse(frame, radius, radius * self.round)

    def brow(self, sign: int) -> Ellipse:
        f = self.factors
        frame = self.head.patch(sign * f.eye_spacing * 1.02, f.eye_height - f.brow_height)
        length = 1.2 * f.eye_size
        return Ellipse(frame, length, 0.032 + 0 * length, slope=sign * f.brow_tilt / length, bend=f.brow_arch)

    def ear(self, sign: int) -> Ellipse:
        f = self.factors
        across = sign * f.face_width * 1.02 - 0.06 * f.yaw.sin()
        frame = self.head.frame.moved(across, 0.6 * f.face_height * (f.eye_height + 0.1) - 0.1 * f.pitch)
        return Ellipse(frame, 0.75 * f.ear_size, 1.25 * f.ear_size)

    def nostril(self, sign: int) -> Ellipse:
        width = self.factors.nose_width
        return Ellipse(self.nose.frame.moved(sign * 0.5 * width, 0.22 * width), 0.28 * width, 0.18 * width)

    def mouth(self, radius_u: Tensor, radius_v: Tensor) -> Ellipse:
        f = self.factors
        frame = self.head.patch(0.0, f.mouth_height, lift=1.04).moved(0.0, 0.5 * f.mouth_opening)
        return Ellipse(frame, radius_u, radius_v, bend=-f.mouth_curve / f.mouth_width.square())

    def hair(self) -> Ellipse:
        f = self.factors
        frame = self.head.frame.moved(-0.10 * f.yaw.sin(), -0.08 + 0.10 * f.pitch.sin())
        return Ellipse(frame, f.face_width + f.hair_volume, f.face_height + f.hair_volume, stretch=0.5 + f.hair_length)

    def neck(self) -> Ellipse:
        f = self.factors
        return Ellipse(self.head.frame.moved(0.0, 0.75), 0.52 * f.face_width, 0.5 + 0 * f.x)

    def shirt(self) -> Ellipse:
        f = self.factors
        upright = Frame(torch.stack([0.7 * f.x, 1.18 + 0.7 * f.y], 1), torch.eye(2, device=f.x.device).expand(len(f), 2, 2))
        return Ellipse(upright, 0.85 * f.size, 0.36 * f.size)

    def landmarks(self) -> Tensor:
        """Return the image points [B, len(LANDMARKS), 2] of all landmarks."""
        left, right = self.eyes["left"], self.eyes["right"]
        brow_left, brow_right = self.brows["left"], self.brows["right"]
        points = [self.irises["left"].at(0, 0), self.irises["right"].at(0, 0)]
        points += [left.at(-1, 0), left.at(1, 0), right.at(-1, 0), right.at(1, 0)]
        points += [left.at(0, -1), left.at(0, 1), right.at(0, -1), right.at(0, 1)]
        points += [brow_left.at(u, 0) for u in (-1, 0, 1)] + [brow_right.at(u, 0) for u in (-1, 0, 1)]
        points += [self.bridge.at(0, 0), self.nose.at(0, 0), self.nostrils["left"].at(0, 0), self.nostrils["right"].at(0, 0)]
        points += [self.lips.at(-1, 0), self.lips.at(1, 0), self.lips.at(0, -1), self.lips.at(0, 1)]
        points += [self.inside.at(0, -1), self.inside.at(0, 1)]
        points += [self.head.surface(0.0, 0.99), self.head.surface(0.0, -self.factors.hairline)]
        return torch.stack(points, dim=1)


def scaled(ellipse: Ellipse, factor: float) -> Ellipse:
    return Ellipse(ellipse.frame, factor * ellipse.radius_u, factor * ellipse.radius_v)
