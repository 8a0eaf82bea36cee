"""Decoding of uploads in a child process with limits of its own, so that no decoder can harm the API's process.

`python -m jobs.storage.decoding picture|mask` is that child. It reads the bytes on standard input. On standard output it writes
what they were as JSON, then the re-encoded bytes; or it exits with status 2 and one sentence.
"""

import hashlib
import io
import json
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageCms, ImageOps
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as save_safetensors

from jobs.errors import DecoderBusy, InvalidJob, Problem

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_BYTES = 30 * 10**6  # of a file in one request
MAX_PIXELS = 50 * 10**6
NUMBERS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
MAX_LATENT_NUMBERS = 2**20
MEMORY_BYTES = 2 * 2**30  # of the child: 50 megapixels a few times over
CPU_S = 30
WAIT_S = 5.0  # how long an upload waits for a child; each that waits holds a thread that others need
REFUSED = 2
CHILDREN = threading.BoundedSemaphore(os.cpu_count() or 1)  # at once, of one API process


class Refused(Exception):
    """Raised when the bytes are nothing that can be uploaded."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upload, checked and re-encoded: equal pictures give equal bytes."""

    kind: Literal["image", "mask", "latent"]
    width: int  # pixels; of a latent the numbers in a row
    height: int  # pixels; of a latent its rows
    data: bytes  # PNG without metadata, of a mask with one bit a pixel; or safetensors with w [1, L, D]

    @property
    def sha256(self) -> str:
        """Return the name of this upload."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def media_type(self) -> str:
        return "application/octet-stream" if self.kind == "latent" else "image/png"


def decode(data: bytes, field: str, wait_s: float = WAIT_S) -> Decoded:
    """Decode a photo or a latent.

    Args:
        field: the field of the request that problems name.
        wait_s: how long to wait while as many children run as may.

    Raises:
        InvalidJob, DecoderBusy.
    """
    return run_child("picture", limit_size(data, field), field, wait_s)


def decode_mask(data: bytes, field: str) -> Decoded:
    """Decode a movable mask: a PNG, set where any channel but alpha is not zero. Raises InvalidJob, DecoderBusy."""
    return run_child("mask", limit_size(data, field), field)


def decode_stream(parts: Iterable[bytes], kind: str | None, field: str) -> Decoded:
    """Decode a photo, a latent or a mask of any size: its bytes lie in the child's memory alone.

    Raises:
        InvalidJob, DecoderBusy, and whatever the parts raise.
    """
    return run_child("mask" if kind == "mask" else "picture", parts, field)


def limit_size(data: bytes, field: str) -> list[bytes]:
    """Return the data as the only part. Raises InvalidJob when it is too large."""
    if len(data) > MAX_BYTES:
        raise refusal(field, f"may have {MAX_BYTES / 1e6:g} MB, has {len(data) / 1e6:.1f} MB")
    return [data]


def run_child(command: str, parts: Iterable[bytes], field: str, wait_s: float = WAIT_S) -> Decoded:
    """Start a child as soon as one may run, and return what it decodes. Raises InvalidJob, DecoderBusy."""
    if not CHILDREN.acquire(timeout=wait_s):
        raise DecoderBusy(f"more pictures are being read than this server can: no turn within {wait_s:g} s")
    try:
        child = communicate(command, parts)
    except subprocess.TimeoutExpired:
        raise refusal(field, f"takes longer than {2 * CPU_S} s to read") from None
    finally:
        CHILDREN.release()
    if child.returncode == REFUSED:
        raise refusal(field, child.stderr.decode().splitlines()[-1])
    if child.returncode != 0:
        raise refusal(field, "cannot be read within the limits of memory and time")
    head, _, body = child.stdout.partition(b"\n")
    return Decoded(**json.loads(head), data=body)


def communicate(command: str, parts: Iterable[bytes]) -> subprocess.CompletedProcess[bytes]:
    """Send the parts to a child and return its output.

    Raises:
        TimeoutExpired, and whatever the parts raise: the child is then killed before it sees the end of its input.
    """
    arguments = [sys.executable, "-P", "-W", "ignore", "-m", "jobs.storage.decoding", command]
    pipe = subprocess.PIPE
    with subprocess.Popen(arguments, stdin=pipe, stdout=pipe, stderr=pipe, env=child_environment()) as child:
        try:
            write_parts(child, parts)
            out, err = child.communicate(timeout=2 * CPU_S)
        except BaseException:
            child.kill()
            child.communicate()
            raise
    return subprocess.CompletedProcess(arguments, child.returncode, out, err)


def write_parts(child: subprocess.Popen[bytes], parts: Iterable[bytes]) -> None:
    with suppress(BrokenPipeError):  # the child has ended by itself, and its exit status says why
        for part in parts:
            child.stdin.write(part)  # type: ignore[union-attr]  # it is a pipe


def child_environment() -> dict[str, str]:
    """Return the child's environment: no secrets, and one thread, since each reserves memory that counts against the limit."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def refusal(field: str, message: str) -> InvalidJob:
    return InvalidJob([Problem(field=field, message=message)])


def read(data: bytes) -> Decoded:
    """Decode a photo or a latent in this process, as the child does. Raises Refused."""
    readers: dict[bytes, Callable[[bytes], np.ndarray]] = {b"PK\x03\x04": read_npz, b"\x93NUM": read_npy}
    if reader := readers.get(data[:4]):
        return decode_latent(reader(data))
    if data[8:10] == b'{"':
        return decode_latent(read_safetensors(data))
    return as_png("image", read_picture(data))


def read_mask(data: bytes) -> Decoded:
    """Decode a movable mask in this process, as the child does. Raises Refused."""
    picture = open_picture(data, ("PNG",))
    colors = picture if picture.mode.startswith("I") else picture.convert("RGB")
    moving = np.asarray(colors).reshape(picture.height, picture.width, -1).any(axis=2)
    return as_png("mask", Image.fromarray(moving))


def as_png(kind: Literal["image", "mask"], picture: Image.Image) -> Decoded:
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=3)
    return Decoded(kind=kind, width=picture.width, height=picture.height, data=out.getvalue())


def read_picture(data: bytes) -> Image.Image:
    """Return the picture upright, in sRGB and without alpha (white shows where it was clear). Raises Refused."""
    picture = open_picture(data, FORMATS)
    try:
        return flatten(to_srgb(ImageOps.exif_transpose(picture)))
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused("has metadata that cannot be read") from error


def open_picture(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Decode a picture once its size is known to be within the limit. Raises Refused."""
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            if image.width * image.height > MAX_PIXELS:
                size = f"{image.width} x {image.height}"
                raise Refused(f"may have {MAX_PIXELS / 1e6:g} megapixels, has {size} pixels")
            if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:  # phones put previews beside the photo
                raise Refused("is animated: send a single picture")
            image.load()
            return image
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise Refused(f"is not a picture that can be read; known formats: {', '.join(formats)}") from error


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert the colors by the picture's ICC profile, if it has one that can be read."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16 bits a channel
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    if image.mode in ("P", "PA", "LA") or (profile and "transparency" in image.info):
        image = image.convert("RGBA")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK", "L"):
        return image
    try:
        alpha = image.getchannel("A") if image.mode == "RGBA" else None
        colors = image.convert("RGB") if image.mode == "RGBA" else image
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(colors, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, OSError):
        return image
    if converted is None:  # only in-place conversions return None, but the type says it may be
        return image
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def flatten(image: Image.Image) -> Image.Image:
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
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, TypeError) as error:
        raise Refused("is not a .safetensors that can be read") from error
    if "w" not in tensors:
        raise Refused("a .safetensors must hold a tensor named w")
    w = tensors["w"]
    if w["dtype"] not in NUMBERS:
        raise Refused(f"w must be {', '.join(NUMBERS)} in a .safetensors, is {w['dtype']}")
    return np.frombuffer(w["data"], dtype=NUMBERS[w["dtype"]]).reshape(w["shape"])


def decode_latent(array: np.ndarray) -> Decoded:
    """Return w of shape [D], [L, D] or [1, L, D] as float32 [1, L, D]. Raises Refused."""
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
    Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked before anything is decoded
    try:
        data = sys.stdin.buffer.read()
        decoded = read_mask(data) if sys.argv[1:] == ["mask"] else read(data)
    except Refused as error:
        sys.stderr.write(str(error))
        sys.exit(REFUSED)
    described = asdict(decoded)
    body = described.pop("data")
    sys.stdout.buffer.write(json.dumps(described).encode() + b"\n" + body)


if __name__ == "__main__":
    main()
