"""Reads what clients upload, in a child process with limits of its own: no decoder runs beside the API's memory.

`python -m jobs.decoding` is that child: bytes on its standard input, what they were as JSON and the re-encoded bytes on
its standard output; or exit status 2 and a sentence.
"""

import hashlib
import io
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors
from safetensors.numpy import save as save_safetensors

from jobs.errors import InvalidJob, Problem

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 30 * 10**6
MAX_PIXELS = 50 * 10**6
MAX_LATENT_NUMBERS = 2**20
MEMORY_BYTES = 2 * 2**30  # of the child: 50 megapixels a few times over
CPU_S = 30
REFUSED = 2


class Refused(Exception):
    """The bytes are nothing that can be uploaded."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upload, checked and re-encoded: equal pictures give equal bytes."""

    kind: Literal["image", "latent"]
    width: int  # pixels; of a latent the numbers in a row
    height: int  # pixels; of a latent its rows
    data: bytes  # PNG without metadata, or safetensors with w [1, L, D]

    @property
    def sha256(self) -> str:
        """The name of this upload."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def media_type(self) -> str:
        return "image/png" if self.kind == "image" else "application/octet-stream"


def decode(data: bytes, field: str) -> Decoded:
    """Raises InvalidJob, naming the field."""
    if len(data) > MAX_BYTES:
        raise refusal(field, f"may have {MAX_BYTES / 1e6:g} MB, has {len(data) / 1e6:.1f} MB")
    command = [sys.executable, "-m", "jobs.decoding"]
    try:
        child = subprocess.run(command, input=data, capture_output=True, timeout=2 * CPU_S, check=False)
    except subprocess.TimeoutExpired:
        raise refusal(field, f"takes longer than {2 * CPU_S} s to read") from None
    if child.returncode == REFUSED:
        raise refusal(field, child.stderr.decode().strip())
    if child.returncode != 0:
        raise refusal(field, "cannot be read within the limits of memory and time")
    head, _, body = child.stdout.partition(b"\n")
    return Decoded(**json.loads(head), data=body)


def refusal(field: str, message: str) -> InvalidJob:
    return InvalidJob([Problem(field=field, message=message)])


def read(data: bytes) -> Decoded:
    """What the child does. Raises Refused."""
    readers: dict[bytes, Callable[[bytes], np.ndarray]] = {b"PK\x03\x04": read_npz, b"\x93NUM": read_npy}
    if reader := readers.get(data[:4]):
        return latent(reader(data))
    if data[8:10] == b'{"':
        return latent(read_safetensors(data))
    picture = read_picture(data)
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=3)
    return Decoded(kind="image", width=picture.width, height=picture.height, data=out.getvalue())


def read_picture(data: bytes) -> Image.Image:
    """Upright, in sRGB, without alpha (white shows where it was clear)."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise Refused(f"may have {MAX_PIXELS / 1e6:g} megapixels, has {size} pixels")
            if getattr(image, "n_frames", 1) > 1:
                raise Refused("is animated: send a single picture")
            image.load()
            return flattened(in_srgb(ImageOps.exif_transpose(image)))
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise Refused(f"is not a picture that can be read; known formats: {', '.join(FORMATS)}") from error


def in_srgb(image: Image.Image) -> Image.Image:
    """Converted from the colors of its ICC profile, where it has one that can be read."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16 bits a channel
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        colors = image.convert("RGB") if image.mode == "RGBA" else image
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(colors, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image
    if converted is None:  # says the type; only in-place conversions return nothing
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def flattened(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layer = image.convert("RGBA")
    ground = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(ground, layer).convert("RGB")


def read_npz(data: bytes) -> np.ndarray:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return np.asarray(arrays["w"])
    except KeyError as error:
        raise Refused("an .npz must hold an array named w") from error
    except Exception as error:  # zipfile and numpy raise many kinds
        raise Refused("is not an .npz that can be read") from error


def read_npy(data: bytes) -> np.ndarray:
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (ValueError, OSError, EOFError) as error:
        raise Refused("is not an .npy of plain numbers") from error


def read_safetensors(data: bytes) -> np.ndarray:
    try:
        return load_safetensors(data)["w"]
    except KeyError as error:
        raise Refused("a .safetensors must hold a tensor named w") from error
    except (SafetensorError, ValueError, TypeError) as error:
        raise Refused("is not a .safetensors that can be read") from error


def latent(array: np.ndarray) -> Decoded:
    """w [D], [L, D] or [1, L, D], as float32 [1, L, D]."""
    if array.dtype.kind != "f" or not 1 <= array.ndim <= 3 or array.size > MAX_LATENT_NUMBERS or not array.size:
        raise Refused(f"w must be floating-point numbers, one row or one for each layer, at most {MAX_LATENT_NUMBERS} in all")
    rows = array.reshape(1, -1, array.shape[-1]).astype(np.float32)
    if array.ndim == 3 and array.shape[0] != 1:
        raise Refused(f"w must be of one picture, is of {array.shape[0]}")
    if not np.isfinite(rows).all():
        raise Refused("w must be finite")
    return Decoded(kind="latent", width=rows.shape[2], height=rows.shape[1], data=save_safetensors({"w": rows}))


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    Image.MAX_IMAGE_PIXELS = None  # ours is checked before anything is decoded
    try:
        decoded = read(sys.stdin.buffer.read())
    except Refused as error:
        sys.stderr.write(str(error))
        sys.exit(REFUSED)
    described = asdict(decoded)
    body = described.pop("data")
    sys.stdout.buffer.write(json.dumps(described).encode() + b"\n" + body)


if __name__ == "__main__":
    main()
