"""Photos and masks as the decoder reads them: upright, in sRGB, without metadata; masks with one bit a pixel.

Colors are converted in strips of rows, so that a picture lies in memory twice at most.
"""

import io
from collections.abc import Iterator
from typing import IO, Protocol

import numpy as np
from PIL import ExifTags, Image, ImageCms

from jobs.storage.picture_files import Refused

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50 * 10**6
WEBP_BYTES_PER_PIXEL = 12  # two canvases of its decoder and a copy
STRIP_PIXELS = 2**20
PNG_LEVEL = 3
LARGE_PIXELS = 16 * 10**6  # above, a PNG is compressed by run lengths: 40 % less CPU, and smaller for photos
Z_RLE = 3
GRAY_MODES = ("1", "L", "I;16", "I")
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Budget(Protocol):
    """What a picture may take, once its size is known."""

    def __call__(self, pixels: int, needed_bytes: int) -> None:
        """Set the limits of this process. Raises Refused when the picture needs more memory than there may be."""
        ...


def no_budget(pixels: int, needed_bytes: int) -> None:
    """Limit nothing."""


def read_picture(file: IO[bytes], budget: Budget = no_budget) -> Image.Image:
    """Return the picture upright, in sRGB and without alpha (white shows where it was clear). Raises Refused."""
    picture = open_picture(file, FORMATS, budget)
    try:
        turn = TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
        flat = picture if is_flat(picture) else convert(picture)
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise Refused("has metadata that cannot be read") from error
    del picture
    flat.info = {}
    return flat if turn is None else flat.transpose(turn)


def read_mask(file: IO[bytes], budget: Budget = no_budget) -> np.ndarray:
    """Return a movable mask, bool [H, W]: a PNG, set where any channel but alpha is not zero. Raises Refused."""
    picture = open_picture(file, ("PNG",), budget)
    mask = np.empty((picture.height, picture.width), dtype=bool)
    for top, strip in strips(picture):
        colors = strip if strip.mode in GRAY_MODES else strip.convert("RGB")
        mask[top : top + strip.height] = np.asarray(colors).reshape(strip.height, strip.width, -1).any(axis=2)
    return mask


def open_picture(file: IO[bytes], formats: tuple[str, ...], budget: Budget) -> Image.Image:
    """Decode a picture once its size is known to be within the limit. Raises Refused."""
    try:
        with Image.open(file, formats=formats) as image:
            pixels = image.width * image.height
            if pixels > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise Refused(f"may have {MAX_PIXELS / 1e6:g} megapixels, has {size} pixels")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # phones put previews beside the photo
                raise Refused("is animated: send a single picture")
            if image.format == "WEBP":
                budget(pixels, pixels * WEBP_BYTES_PER_PIXEL + 2 * file.seek(0, io.SEEK_END))
                return load_webp(image)
            budget(pixels, 0)
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise Refused(f"is not a picture that can be read; known formats: {', '.join(formats)}") from error


def load_webp(image: Image.Image) -> Image.Image:
    """Decode a WebP and drop its decoder, with two canvases, before the pixels are copied."""
    info, size, mode = image.info, image.size, image.mode
    exif = image.getexif()
    data, _, _ = image._get_next()  # type: ignore[attr-defined]  # `load` would keep the decoder
    del image._decoder  # type: ignore[attr-defined]
    decoded = Image.frombytes(mode, size, data, "raw", image.rawmode)  # type: ignore[attr-defined]
    decoded.info = info
    decoded._exif = exif
    return decoded


def is_flat(image: Image.Image) -> bool:
    """Return whether the picture is RGB already, with nothing to convert its colors by."""
    return image.mode == "RGB" and "icc_profile" not in image.info and not image.has_transparency_data


def convert(image: Image.Image) -> Image.Image:
    """Return the picture in sRGB and without alpha."""
    to_srgb, flat = SrgbConversion(image.info.get("icc_profile")), Image.new("RGB", image.size)
    for top, strip in strips(image):
        flat.paste(flatten(to_srgb(strip)), (0, top))
    return flat


def strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield strips of the picture with the row at which each begins."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


class SrgbConversion:
    """The conversion of strips of one picture to sRGB by its ICC profile, if it has one that can be read."""

    def __init__(self, profile: bytes | None) -> None:
        self.profile = profile
        self.transforms: dict[str, ImageCms.ImageCmsTransform | None] = {}  # by mode; None: the profile does not fit it

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return a strip in sRGB; alpha stays."""
        if image.mode.startswith("I"):  # 16 bits a channel
            image = Image.fromarray(to_eight_bits(np.asarray(image)))
        if image.mode in ("P", "PA", "LA") or (self.profile and "transparency" in image.info):
            image = image.convert("RGBA")
        if not self.profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
            return image
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        colors = image.convert("RGB") if image.mode == "RGBA" else image
        transform = self.transform(colors.mode)
        if transform is None:
            return image
        converted = transform.apply(colors)
        if alpha is not None:
            converted.putalpha(alpha)
        return converted

    def transform(self, mode: str) -> ImageCms.ImageCmsTransform | None:
        """Return the transform from this mode, made once."""
        if mode not in self.transforms:
            self.transforms[mode] = make_transform(self.profile or b"", mode)
        return self.transforms[mode]


def to_eight_bits(gray: np.ndarray) -> np.ndarray:
    """Return 16 bits a channel as 8, rounded."""
    if gray.dtype == np.uint16:
        return ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return (gray / 257).round().astype(np.uint8)


def make_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Make the transform from a profile to sRGB; None where the profile is broken or of other colors."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        return ImageCms.ImageCmsTransform(source, ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None


def flatten(image: Image.Image) -> Image.Image:
    """Return a strip without alpha: white shows where it was clear."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(ground, layer).convert("RGB")


def write_png(picture: Image.Image, out: IO[bytes]) -> None:
    """Write a picture: equal pictures give equal bytes."""
    large = {"compress_type": Z_RLE} if picture.width * picture.height > LARGE_PIXELS else {}
    picture.save(out, format="PNG", compress_level=PNG_LEVEL, **large)
