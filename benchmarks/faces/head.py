"""The geometry of a head: an ellipsoid that turns, whose surface points become image points.

Surface points are (u, v) of the unit sphere seen from the front: u to the right, v down, in [-1, 1]. Image points are
(x, y) in units of half the image, (0, 0) its center, y down.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.faces.factors import Factors


@dataclass(frozen=True)
class Frame:
    """A flat patch: image point = center + axes @ (u, v)."""

    center: Tensor  # [B, 2]
    axes: Tensor  # [B, 2, 2], columns are the image vectors of u and v

    def at(self, u: Tensor | float, v: Tensor | float) -> Tensor:
        """Return the image points [B, 2] of local coordinates, numbers or [B]."""
        zero = torch.zeros_like(self.center[:, 0])
        local = torch.stack([zero + u, zero + v], dim=1)
        return self.center + (self.axes @ local[:, :, None])[:, :, 0]

    def moved(self, u: Tensor | float, v: Tensor | float) -> "Frame":
        """Return the same axes around another center, given in local coordinates."""
        return Frame(self.at(u, v), self.axes)

    def scaled(self, u: Tensor | float, v: Tensor | float) -> "Frame":
        """Return the frame with its axes scaled."""
        zero = torch.zeros_like(self.center[:, 0])
        return Frame(self.center, self.axes * torch.stack([zero + u, zero + v], dim=1)[:, None, :])


class Head:
    """The pose and shape of B heads."""

    def __init__(self, factors: Factors) -> None:
        self.factors = factors
        self.turn = rotation(factors.yaw, factors.pitch)  # [B, 3, 3]
        self.drop = 0.5 * factors.mouth_opening  # the jaw goes down with the mouth
        cos, sin = factors.roll.cos() * factors.size, factors.roll.sin() * factors.size
        axes = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)
        self.frame = Frame(torch.stack([factors.x, factors.y + 0.05], 1), axes)  # flat: head units to the image

    def to_flat(self, n: Tensor) -> Tensor:
        """Return the head units [B, 2] of turned sphere points [B, 3]."""
        down = n[:, 1]
        x = self.factors.face_width * n[:, 0] / (1 + self.factors.taper * down.clamp(min=0).square())
        y = self.factors.face_height * down * torch.where(down > 0, 1 + self.drop, torch.ones_like(down))
        return torch.stack([x, y], dim=1)

    def surface(self, u: Tensor | float, v: Tensor | float, lift: float = 1.0) -> Tensor:
        """Return the image points [B, 2] of surface points; lift is their distance from the center (nose tips stand out)."""
        zero = torch.zeros_like(self.factors.yaw)
        u, v = zero + u, zero + v
        front = torch.stack([u, v, (1 - u.square() - v.square()).clamp(min=1e-3).sqrt()], dim=1)
        turned = (self.turn @ (front * lift)[:, :, None])[:, :, 0]
        return self.frame.at(*self.to_flat(turned).unbind(1))

    def patch(self, u: Tensor | float, v: Tensor | float, lift: float = 1.0) -> Frame:
        """Return the tangent frame at a surface point."""
        step = 0.02
        right = (self.surface(u + step, v, lift) - self.surface(u - step, v, lift)) / (2 * step)
        below = (self.surface(u, v + step, lift) - self.surface(u, v - step, lift)) / (2 * step)
        return Frame(self.surface(u, v, lift), torch.stack([right, below], dim=2))

    def to_sphere(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the turned sphere points of head units [B, 2, N], and the same points before turning, both [B, 3, N].

        Outside the outline the depth is 0 and the points are only nearly on the sphere.
        """
        f = self.factors
        down = flat[:, 1] / f.face_height[:, None]
        down = torch.where(down > 0, down / (1 + self.drop[:, None]), down)
        across = flat[:, 0] / f.face_width[:, None] * (1 + f.taper[:, None] * down.clamp(min=0).square())
        depth = (1 - across.square() - down.square()).clamp(min=0).sqrt()
        turned = torch.stack([across, down, depth], dim=1)
        return turned, self.turn.transpose(1, 2) @ turned


def rotation(yaw: Tensor, pitch: Tensor) -> Tensor:
    """Return matrices [B, 3, 3]: positive yaw turns to the image's right, positive pitch down."""
    one, zero = torch.ones_like(yaw), torch.zeros_like(yaw)
    cy, sy, cp, sp = yaw.cos(), yaw.sin(), pitch.cos(), pitch.sin()
    around_y = torch.stack([cy, zero, sy, zero, one, zero, -sy, zero, cy], 1).view(-1, 3, 3)
    around_x = torch.stack([one, zero, zero, zero, cp, sp, zero, -sp, cp], 1).view(-1, 3, 3)
    return around_x @ around_y
