"""Draws faces of any size on any device: parts from back to front, with edges one pixel soft."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.faces.factors import Factors
from benchmarks.faces.parts import PARTS, Anatomy, Ellipse

LIPS_AND_TEETH = {"mouth": (0.25, 0.05, 0.07), "teeth": (0.93, 0.92, 0.88)}


@dataclass(frozen=True)
class Picture:
    """Drawn faces, and where everything is on them."""

    images: Tensor  # [B, 3, S, S] in [-1, 1]
    landmarks: Tensor  # [B, K, 2] xy pixels, in the order of LANDMARKS
    part: Tensor | None  # [B, S, S] uint8, index into PARTS of what each pixel shows
    coordinates: Tensor | None  # [B, 2, S, S] where on that part: the part's own (u, v)


def render(factors: Factors, size: int, *, dense: bool = False, chunk: int = 8) -> Picture:
    """Draw B faces of size x size pixels; with dense=True also part and coordinates of every pixel."""
    pieces = [draw(factors.slice(k, k + chunk), size, dense) for k in range(0, len(factors), chunk)]
    images, landmarks = (torch.cat([getattr(piece, name) for piece in pieces]) for name in ("images", "landmarks"))
    if not dense:
        return Picture(images, landmarks, None, None)
    part, coordinates = (torch.cat([getattr(piece, name) for piece in pieces]) for name in ("part", "coordinates"))
    return Picture(images, landmarks, part, coordinates)


def draw(factors: Factors, size: int, dense: bool) -> Picture:
    anatomy = Anatomy(factors)
    colors = Colors(factors)
    canvas = Canvas(len(factors), size, factors.values.device, dense)
    draw_behind(canvas, anatomy, colors)
    draw_skin_and_hair(canvas, anatomy, colors)
    for side in ("left", "right"):
        draw_eye(canvas, anatomy, colors, side)
        canvas.paint(colors.brow, [anatomy.brows[side]], f"brow_{side}", reach=0.20)
    draw_nose(canvas, anatomy)
    draw_mouth(canvas, anatomy, colors)
    pixels = (anatomy.landmarks() + 1) * (size / 2) - 0.5
    return Picture(canvas.image * 2 - 1, pixels, canvas.part, canvas.coordinates)


class Colors:
    """RGB [B, 3] in [0, 1] of every part."""

    def __init__(self, f: Factors) -> None:
        self.skin = blend((0.36, 0.23, 0.16), (0.97, 0.83, 0.72), f.skin_tone) + warm(f.skin_warmth, 0.05)
        self.hair = blend((0.09, 0.07, 0.06), (0.86, 0.72, 0.46), f.hair_tone.square()) + warm(f.hair_warmth, 0.10)
        self.brow = 0.65 * self.hair
        self.iris = iris_color(f.iris_hue, f.iris_tone)
        self.lips = (1 - f.lip_red)[:, None] * self.skin * rgb(f, (0.85, 0.62, 0.62)) + f.lip_red[:, None] * rgb(
            f, (0.78, 0.14, 0.22)
        )
        self.shirt = torch.stack([f.shirt_red, f.shirt_green, f.shirt_blue], 1)
        self.back = torch.stack([f.back_red, f.back_green, f.back_blue], 1)
        self.light = torch.nn.functional.normalize(torch.stack([f.light_x, f.light_y, torch.ones_like(f.light_x)], 1))
        self.slope = f.back_slope


def blend(dark: tuple[float, ...], light: tuple[float, ...], amount: Tensor) -> Tensor:
    low, high = amount.new_tensor(dark), amount.new_tensor(light)
    return low + (high - low) * amount[:, None]


def warm(warmth: Tensor, strength: float) -> Tensor:
    return strength * warmth[:, None] * warmth.new_tensor((1.0, 0.0, -1.0))


def iris_color(hue: Tensor, tone: Tensor) -> Tensor:
    """Return colors [B, 3] from brown (0) over green to blue (1)."""
    brown, blue = hue.new_tensor((0.75, 0.45, 0.20)), hue.new_tensor((0.30, 0.60, 1.0))
    return tone[:, None] * (brown + (blue - brown) * hue[:, None])


def rgb(f: Factors, color: tuple[float, ...]) -> Tensor:
    return f.values.new_tensor(color).expand(len(f), 3)


class Window(NamedTuple):
    """A square of pixels in each image: index tensors [B, P, P] and the image points of their centers."""

    batch: Tensor
    row: Tensor
    column: Tensor
    x: Tensor
    y: Tensor


class Canvas:
    """The pictures of B faces while they are drawn."""

    def __init__(self, count: int, size: int, device: torch.device, dense: bool) -> None:
        self.size = size
        self.image = torch.zeros(count, 3, size, size, device=device)
        line = (torch.arange(size, device=device) * 2 + 1) / size - 1  # image points of the pixel centers
        self.y, self.x = (grid.expand(count, size, size) for grid in torch.meshgrid(line, line, indexing="ij"))
        self.part = torch.zeros(count, size, size, dtype=torch.uint8, device=device) if dense else None
        self.coordinates = torch.stack([self.x, self.y], 1) if dense else None

    def window(self, center: Tensor, reach: float) -> Window:
        """Return the pixels around an image point [B, 2], `reach` image widths wide and high."""
        width = min(self.size, max(4, round(reach * self.size)))
        corner = ((center + 1) * (self.size / 2) - width / 2).round().long().clamp(0, self.size - width)
        step = torch.arange(width, device=center.device)
        row = (corner[:, 1, None, None] + step[:, None]).expand(-1, width, width)
        column = (corner[:, 0, None, None] + step).expand(-1, width, width)
        batch = torch.arange(len(center), device=center.device)[:, None, None].expand_as(row)
        return Window(batch, row, column, x=self.point(column), y=self.point(row))

    def point(self, index: Tensor) -> Tensor:
        """Return the image coordinate of a pixel's center."""
        return (index * 2 + 1) / self.size - 1

    def paint(self, color: Tensor, shapes: list[Ellipse], part: str, *, reach: float | None = None, tint: bool = False) -> None:
        """Cover what lies inside all of the shapes; the first one's coordinates become the part's.

        Args:
            color: [B, 3]; with tint=True it multiplies what is there instead of replacing it.
            reach: how wide a window around the first shape to look at, in image widths; default the whole image.
        """
        if reach is None:
            self.cover(color, *inside(shapes, self.x, self.y, self.size), part, tint)
            return
        w = self.window(shapes[0].frame.center, reach)
        cover, uv = inside(shapes, w.x, w.y, self.size)
        under = self.image[w.batch, :, w.row, w.column]  # [B, P, P, 3]
        over = color[:, None, None, :]
        self.image[w.batch, :, w.row, w.column] = under + cover[..., None] * ((under * over if tint else over) - under)
        if self.part is not None and self.coordinates is not None:
            shown = cover > 0.5
            self.part[w.batch[shown], w.row[shown], w.column[shown]] = PARTS.index(part)
            self.coordinates[w.batch[shown], :, w.row[shown], w.column[shown]] = uv.permute(0, 2, 3, 1)[shown]

    def cover(self, color: Tensor, cover: Tensor, uv: Tensor, part: str, tint: bool = False) -> None:
        """Blend a color [B, 3] or [B, 3, S, S] in by coverage [B, S, S]; uv [B, 2, S, S] are the part's coordinates."""
        over = color if color.dim() == 4 else color[:, :, None, None]
        self.image = self.image + cover[:, None] * ((self.image * over if tint else over) - self.image)
        self.mark(cover, uv, part)

    def mark(self, cover: Tensor, uv: Tensor, part: str) -> None:
        """Note that the pixels covered by more than half show this part at these coordinates."""
        if self.part is not None and self.coordinates is not None:
            shown = cover > 0.5
            self.part[shown] = PARTS.index(part)
            self.coordinates = torch.where(shown[:, None], uv, self.coordinates)


def inside(shapes: list[Ellipse], x: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return how far all shapes cover the pixels at image points x, y, [B, H, W], and coordinates [B, 2, H, W] on the first."""
    covers, first = [], None
    for shape in shapes:
        cover, uv = ellipse_cover(shape, x, y, size)
        covers.append(cover)
        first = uv if first is None else first
    assert first is not None
    return torch.stack(covers).amin(dim=0), first


def ellipse_cover(shape: Ellipse, x: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return how far an ellipse covers the pixels, [B, H, W], and the ellipse's coordinates there, [B, 2, H, W]."""
    inverse = torch.linalg.inv(shape.frame.axes)[:, :, :, None, None]  # [B, 2, 2, 1, 1]
    dx, dy = x - plane(shape.frame.center[:, 0]), y - plane(shape.frame.center[:, 1])
    u = inverse[:, 0, 0] * dx + inverse[:, 0, 1] * dy
    slope, bend = plane(shape.slope), plane(shape.bend)
    v = inverse[:, 1, 0] * dx + inverse[:, 1, 1] * dy - (slope + bend * u) * u
    radius_u, radius_v = shape.radius_u[:, None, None], shape.radius_v[:, None, None]
    radius_v = torch.where(v > 0, plane(shape.stretch) * radius_v, radius_v)
    level = (u / radius_u).square() + (v / radius_v).square()
    # signed distance to the edge, first order: (|e|^2 - |e|) / |gradient of |e|^2 / 2|
    gu = u / radius_u.square() - v / radius_v.square() * (slope + 2 * bend * u)
    gv = v / radius_v.square()
    down_x, down_y = inverse[:, 0, 0] * gu + inverse[:, 1, 0] * gv, inverse[:, 0, 1] * gu + inverse[:, 1, 1] * gv
    distance = (level - level.sqrt()) / ((down_x.square() + down_y.square()).sqrt() + 1e-6)
    return (0.5 - distance * (size / 2)).clamp(0, 1), torch.stack([u, v], dim=1)


def plane(value: Tensor | float) -> Tensor | float:
    """Return one value for each face in a shape that combines with [B, H, W]."""
    return value[:, None, None] if isinstance(value, Tensor) else value


def draw_behind(canvas: Canvas, anatomy: Anatomy, colors: Colors) -> None:
    f = anatomy.factors
    canvas.image = (colors.back[:, :, None, None] + (colors.slope[:, None, None] * canvas.y)[:, None]).clamp(0, 1)
    canvas.paint(colors.hair, [anatomy.hair()], "hair")
    canvas.paint(0.78 * colors.skin, [anatomy.neck()], "neck")
    canvas.paint(colors.shirt, [anatomy.shirt()], "shirt")
    for side in ("left", "right"):
        reach = 0.5 * 1.25 * f.ear_size.max().item() * 2 + 0.06
        canvas.paint(0.85 * colors.skin, [anatomy.ears[side]], f"ear_{side}", reach=reach)


def draw_skin_and_hair(canvas: Canvas, anatomy: Anatomy, colors: Colors) -> None:
    f, head = anatomy.factors, anatomy.head
    shape = canvas.x.shape
    inverse = torch.linalg.inv(head.frame.axes)
    offset = torch.stack([canvas.x, canvas.y], 1).flatten(2) - head.frame.center[:, :, None]
    turned, n = head.to_sphere(inverse @ offset)  # [B, 3, N] each
    radius = turned[:, :2].norm(dim=1)
    slope = (turned[:, 0] / f.face_width[:, None]).square() + (turned[:, 1] / f.face_height[:, None]).square()
    distance = radius * (radius - 1) / (slope.sqrt() + 1e-6) * f.size[:, None]
    face = (0.5 - distance * (canvas.size / 2)).clamp(0, 1).view(shape)
    lit = (turned * colors.light[:, :, None]).sum(dim=1).clamp(min=0).view(shape)
    skin = (colors.skin[:, :, None, None] * (0.62 + 0.45 * lit)[:, None]).clamp(0, 1)
    angles = torch.stack([torch.atan2(n[:, 0], n[:, 2]), n[:, 1].clamp(-1, 1).asin()], 1).view(-1, 2, *shape[1:])
    above = (n[:, 1] + f.hairline[:, None] - 0.55 * n[:, 0].square()).view(shape)
    fringe = (0.5 - above * (canvas.size / 2 * f.face_height * f.size)[:, None, None]).clamp(0, 1)
    hair = (colors.hair[:, :, None, None] * (0.80 + 0.25 * lit)[:, None]).clamp(0, 1)
    canvas.cover(skin + fringe[:, None] * (hair - skin), face, angles, "skin")
    canvas.mark(face * fringe, angles, "hair")


def draw_eye(canvas: Canvas, anatomy: Anatomy, colors: Colors, side: str) -> None:
    eye, white = anatomy.eyes[side], rgb(anatomy.factors, (0.96, 0.96, 0.95))
    canvas.paint(rgb(anatomy.factors, (0.12, 0.09, 0.08)), [anatomy.lashes[side]], f"eye_{side}", reach=0.18)
    canvas.paint(white, [eye], f"eye_{side}", reach=0.18)
    canvas.paint(colors.iris, [anatomy.irises[side], eye], f"iris_{side}", reach=0.14)
    canvas.paint(rgb(anatomy.factors, (0.04, 0.04, 0.05)), [anatomy.pupils[side], eye], f"iris_{side}", reach=0.09)


def draw_nose(canvas: Canvas, anatomy: Anatomy) -> None:
    f = anatomy.factors
    canvas.paint(rgb(f, (0.86, 0.82, 0.80)), [anatomy.bridge], "nose", reach=0.28, tint=True)
    canvas.paint(rgb(f, (0.82, 0.74, 0.72)), [anatomy.nose], "nose", reach=0.16, tint=True)
    for side in ("left", "right"):
        canvas.paint(rgb(f, (0.35, 0.28, 0.26)), [anatomy.nostrils[side]], "nose", reach=0.08, tint=True)


def draw_mouth(canvas: Canvas, anatomy: Anatomy, colors: Colors) -> None:
    f = anatomy.factors
    canvas.paint(colors.lips, [anatomy.lips], "lips", reach=0.36)
    canvas.paint(rgb(f, LIPS_AND_TEETH["mouth"]), [anatomy.inside], "mouth", reach=0.36)
    canvas.paint(rgb(f, LIPS_AND_TEETH["teeth"]), [anatomy.teeth, anatomy.inside], "mouth", reach=0.30)
