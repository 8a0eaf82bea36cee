"""The crop of a photo that the model sees: maps points, shapes, masks and pixels between the photo and the model's image.

Coordinates are (x, y) in pixels, pixel centers at integers, in both.
"""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
from PIL import Image

from jobs.errors import InvalidJob, Problem
from jobs.spec.job_spec import Box, Crop, FivePoints, Landmarks, Shape
from jobs.tables import Upload

MIN_CROP = 16  # pixels of the photo
MAX_OVERSIZE = 1.5  # side of a square around a face, in shorter sides of the photo; beyond the photo its edge repeats
FEATHER = 0.06  # share of the crop's side over which it fades into the photo
EYE_SPAN, MOUTH_SPAN = 2.0, 1.8  # FFHQ: half the side is the larger of these times eye-eye and eye-mouth distance
DOWN = 0.1  # FFHQ: the center lies below the eyes by this share of the way to the mouth


@dataclass(frozen=True)
class CropTransform:
    """A square of a picture, perhaps tilted: its center and half its upper edge, both in the picture's pixels."""

    resolution: int  # R of the model's image
    width: int  # of the picture
    height: int
    center: tuple[float, float]
    half: tuple[float, float]  # from the center to the middle of the right edge

    @classmethod
    def whole(cls, resolution: int) -> "CropTransform":
        """Return the transform of the model's own image, which changes nothing."""
        middle = (resolution - 1) / 2
        return cls(resolution, resolution, resolution, (middle, middle), (resolution / 2, 0.0))

    @classmethod
    def of_photo(cls, crop: Crop | None, width: int, height: int, resolution: int) -> "CropTransform":
        """Return the transform for a crop of a photo; the center by default. Raises InvalidJob, naming source.crop."""
        if isinstance(crop, Landmarks):
            check_inside(crop.landmarks, width, height)
            center, half = align_face(crop.landmarks)
        elif isinstance(crop, Box):
            center, half = align_box(crop, width, height)
        else:
            center, half = ((width - 1) / 2, (height - 1) / 2), (min(width, height) / 2, 0.0)
        if math.hypot(*half) * 2 < MIN_CROP:
            raise refusal("source.crop", f"must be at least {MIN_CROP} pixels wide, is {math.hypot(*half) * 2:.0f}")
        if math.hypot(*half) * 2 > MAX_OVERSIZE * min(width, height):
            limit = f"{MAX_OVERSIZE:g} times the shorter side of the photo of {width} x {height} pixels"
            raise refusal("source.crop", f"may be {limit} wide, is {math.hypot(*half) * 2:.0f}")
        return cls(resolution, width, height, center, half)

    @classmethod
    def of_upload(cls, crop: Crop | None, upload: Upload, resolution: int) -> "CropTransform":
        """Return the transform for a crop of an uploaded photo. Raises InvalidJob."""
        if upload.kind != "image":
            raise refusal("source.upload", "is no picture; latents go into source.latent")
        return cls.of_photo(crop, upload.width, upload.height, resolution)

    @property
    def scale(self) -> float:
        """Return how many pixels of the picture make one of the model's image."""
        return 2 * math.hypot(*self.half) / self.resolution

    @property
    def upright(self) -> bool:
        """Return whether the square is not tilted."""
        return self.half[1] == 0 and self.half[0] > 0

    def to_model(self, points: np.ndarray) -> np.ndarray:
        """Return points [..., 2] of the picture in the model's pixels."""
        across, down = self.axes()
        offset = points - np.array(self.center)
        middle = (self.resolution - 1) / 2
        return np.stack([offset @ across, offset @ down], axis=-1) / self.scale + middle

    def shows(self, x: float, y: float) -> bool:
        """Return whether the model's image holds this point of the picture."""
        point = self.to_model(np.array([x, y]))
        return bool((point >= -0.5).all() and (point <= self.resolution - 0.5).all())

    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return unit vectors along the square's upper edge and down its side."""
        across = np.array(self.half) / math.hypot(*self.half)
        return across, np.array([-across[1], across[0]])

    def to_model_shape(self, shape: Shape) -> Shape:
        """Return the shape in the model's pixels."""
        if shape.circle is not None:
            x, y = self.to_model(np.array(shape.circle[:2])).tolist()
            return Shape.model_construct(circle=(x, y, shape.circle[2] / self.scale))
        if shape.polygon is not None:
            return Shape.model_construct(polygon=[(x, y) for x, y in self.to_model(np.array(shape.polygon)).tolist()])
        left, top, right, bottom = cast(tuple[float, float, float, float], shape.box)
        corners = self.to_model(np.array([(left, top), (right, top), (right, bottom), (left, bottom)]))
        if self.upright:
            return Shape.model_construct(box=(*corners[0].tolist(), *corners[2].tolist()))
        return Shape.model_construct(polygon=[(x, y) for x, y in corners.tolist()])

    def cut_mask(self, movable: np.ndarray) -> np.ndarray:
        """Return a mask of the picture, bool [H, W], as the model sees it, bool [R, R]."""
        if self == CropTransform.whole(self.resolution):
            return movable
        picture = Image.fromarray(movable.astype(np.uint8) * 255)
        return np.asarray(self.cut(picture)) > 127

    def cut(self, picture: Image.Image) -> Image.Image:
        """Return the square at the model's size, smoothed as it shrinks; beyond the picture its edge repeats."""
        finer = max(1, math.ceil(self.scale))
        size = self.resolution * finer
        step = self.scale / finer
        across, down = (axis * step for axis in self.axes())
        first = np.array(self.center) + 0.5 - (across + down) * size / 2  # PIL counts from the picture's corner
        padded, corner = self.pad_around(picture)
        x, y = first - corner
        matrix = (across[0], down[0], x, across[1], down[1], y)
        large = padded.transform((size, size), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)
        return large.resize((self.resolution, self.resolution), Image.Resampling.BOX) if finer > 1 else large

    def pad_around(self, picture: Image.Image) -> tuple[Image.Image, np.ndarray]:
        """Return the upright part of the picture around the square, padded by repeating its edge, and that part's corner."""
        low, high = self.extent()
        inside = self.bounds()
        pixels = np.asarray(picture.crop(inside))
        columns, rows = ((inside[k] - int(low[k]), int(high[k]) - inside[k + 2]) for k in (0, 1))
        padded = np.pad(pixels, [rows, columns] + [(0, 0)] * (pixels.ndim - 2), mode="edge")
        return Image.fromarray(padded), low

    def extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the upper left and lower right corner of the upright square around this one, with a margin, in whole pixels."""
        low = np.floor(self.corners().min(axis=0)).astype(int) - 2
        return low, np.ceil(self.corners().max(axis=0)).astype(int) + 2

    def bounds(self) -> tuple[int, int, int, int]:
        """Return the part of the picture that can show: left, top, right, bottom; the last two exclusive."""
        low, high = self.extent()
        (left, top), (right, bottom) = np.maximum(low, 0), np.minimum(high, [self.width, self.height])
        return int(left), int(top), int(right), int(bottom)

    def corners(self) -> np.ndarray:
        """Return the corners [4, 2] clockwise, in coordinates that count from the picture's corner."""
        across, down = (axis * math.hypot(*self.half) for axis in self.axes())
        middle = np.array(self.center) + 0.5
        return np.stack([middle - across - down, middle + across - down, middle + across + down, middle - across + down])

    def put_back(self, photo: Image.Image, edited: np.ndarray) -> Image.Image:
        """Return the photo with the model's image [R, R, 3] blended into its square; outside, its pixels are unchanged."""
        side = 2 * math.hypot(*self.half)
        size = min(self.resolution, math.ceil(side))  # a crop smaller than the model's image is shrunk first, smoothly
        across, down = (axis * size / side for axis in self.axes())
        x, y = self.corners()[0]
        matrix = (across[0], across[1], -(across @ [x, y]), down[0], down[1], -(down @ [x, y]))
        content = Image.fromarray(np.pad(resize(edited, size), ((2, 2), (2, 2), (0, 0)), mode="edge"))
        padded_matrix = (*matrix[:2], matrix[2] + 2, *matrix[3:5], matrix[5] + 2)
        warped = content.transform(photo.size, Image.Transform.AFFINE, padded_matrix, Image.Resampling.BICUBIC)
        alpha = Image.fromarray(feather(size)).transform(photo.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        return Image.composite(warped, photo, alpha)


def align_face(landmarks: FivePoints) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return center and half edge of FFHQ's square around a face, turned with the face."""
    left_eye, right_eye, left_mouth, right_mouth = (
        np.array(point) for point in (landmarks.left_eye, landmarks.right_eye, landmarks.mouth_left, landmarks.mouth_right)
    )
    check_quadrilateral(np.stack([left_eye, right_eye, right_mouth, left_mouth]))
    eyes, mouth = (left_eye + right_eye) / 2, (left_mouth + right_mouth) / 2
    eye_line, face_line = right_eye - left_eye, mouth - eyes
    across = eye_line + np.array([face_line[1], -face_line[0]])  # the mean of both directions
    across = across / np.linalg.norm(across)
    reach = max(EYE_SPAN * np.linalg.norm(eye_line), MOUTH_SPAN * np.linalg.norm(face_line))
    center = eyes + DOWN * face_line
    return (float(center[0]), float(center[1])), (float(across[0] * reach), float(across[1] * reach))


def check_inside(landmarks: FivePoints, width: int, height: int) -> None:
    for name, (x, y) in landmarks:
        if not (0 <= x < width and 0 <= y < height):
            raise refusal(f"source.crop.landmarks.{name}", f"({x:g}, {y:g}) is outside the photo of {width} x {height} pixels")


def check_quadrilateral(corners: np.ndarray) -> None:
    """Check that eyes and mouth corners [4, 2], clockwise from the left eye, make a convex quadrilateral. Raises InvalidJob."""
    sides = np.roll(corners, -1, axis=0) - corners
    following = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    if not (turns > 1).all():
        message = "eyes and mouth corners do not make a quadrilateral (left and right are as the viewer sees them)"
        raise refusal("source.crop.landmarks", message)


def align_box(crop: Box, width: int, height: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return center and half edge of a box. Raises InvalidJob."""
    left, top, right, bottom = crop.box
    if left < 0 or top < 0 or right > width or bottom > height:
        raise refusal("source.crop.box", f"must lie within the photo of {width} x {height} pixels")
    if abs((right - left) - (bottom - top)) > 1 or right <= left:
        raise refusal("source.crop.box", f"must be a square, is {right - left:g} x {bottom - top:g} pixels")
    return ((left + right - 1) / 2, (top + bottom - 1) / 2), ((right - left) / 2, 0.0)


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Return a picture [R, R, 3] at another size."""
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.LANCZOS))


def feather(size: int) -> np.ndarray:
    """Return the opacity of the edited square, uint8 [size, size]: 0 at its edge, 255 from FEATHER inwards."""
    position = np.arange(size)
    edge = np.minimum(position, size - 1 - position) / (FEATHER * size)
    line = np.clip(edge, 0, 1)
    return np.asarray(np.round(255 * np.minimum(line[:, None], line[None])), dtype=np.uint8)


def refusal(field: str, message: str) -> InvalidJob:
    return InvalidJob([Problem(field=field, message=message)])
