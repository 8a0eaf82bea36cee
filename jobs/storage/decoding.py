"""Reads what clients upload, in a child process with limits of its own: no decoder runs beside the API's memory.

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
MAX_BYTES = 30 * 10**6  # that come as one piece
MAX_PIXELS = 50 * 10**6
NUMBERS = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
MAX_LATENT_NUMBERS = 2**20
MEMORY_BYTES = 2 * 2**30  # of the child: 50 megapixels a few times over
CPU_S = 30
TURN_S = 5.0  # how long an upload waits for its turn; each that waits holds a thread that others need
REFUSED = 2
CHILDREN = threading.BoundedSemaphore(os.cpu_count() or 1)  # at once, of one API process


class Refused(Exception):
    """The bytes are nothing that can be uploaded."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upload, checked and re-encoded: equal pictures give equal bytes."""

    kind: Literal["image", "mask", "latent"]
    width: int  # pixels; of a latent the numbers in a row
    height: int  # pixels; of a latent its rows
    data: bytes  # PNG without metadata, of a mask with one bit a pixel; or safetensors with w [1, L, D]

    @property
    def sha256(self) -> str:
        """The name of this upload."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def media_type(self) -> str:
        return "application/octet-stream" if self.kind == "latent" else "image/png"


def decode(data: bytes, field: str) -> Decoded:
    """A photo or a latent. Raises InvalidJob, naming the field; DecoderBusy."""
    return run_child("picture", whole(data, field), field)


def decode_mask(data: bytes, field: str) -> Decoded:
    """A movable mask: a PNG, set where any channel but alpha is not zero. Raises InvalidJob, naming the field; DecoderBusy."""
    return run_child("mask", whole(data, field), field)


def decode_stream(parts: Iterable[bytes], kind: str | None, field: str) -> Decoded:
    """A photo or a latent, or a mask, of any size: the bytes lie in the child's memory alone.

    Raises InvalidJob, naming the field; DecoderBusy; what the parts raise.
    """
    return run_child("mask" if kind == "mask" else "picture", parts, field)


def whole(data: bytes, field: str) -> list[bytes]:
    if len(data) > MAX_BYTES:
        raise refusal(field, f"may have {MAX_BYTES / 1e6:g} MB, has {len(data) / 1e6:.1f} MB")
    return [data]


def run_child(what: str, parts: Iterable[bytes], field: str) -> Decoded:
    if not CHILDREN.acquire(timeout=TURN_S):
        raise DecoderBusy(f"more pictures are being read than this server can: no turn within {TURN_S:g} s")
    try:
        child = answer(what, parts)
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


def answer(what: str, parts: Iterable[bytes]) -> subprocess.CompletedProcess[bytes]:
    """Of a child that is told the parts. Raises TimeoutExpired, and what the parts raise: then it never learns of their end."""
    command = [sys.executable, "-P", "-W", "ignore", "-m", "jobs.storage.decoding", what]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment()) as child:
        try:
            feed(child, parts)
            out, err = child.communicate(timeout=2 * CPU_S)
        except BaseException:
            child.kill()
            child.communicate()
            raise
    return subprocess.CompletedProcess(command, child.returncode, out, err)


def feed(child: subprocess.Popen[bytes], parts: Iterable[bytes]) -> None:
    with suppress(BrokenPipeError):  # it ended by itself, and its status says why
        for part in parts:
            child.stdin.write(part)  # type: ignore[union-attr]  # it is a pipe


def environment() -> dict[str, str]:
    """The child's: no secrets, and one thread, since each reserves memory that counts against the limit."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH") if name in os.environ}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def refusal(field: str, message: str) -> InvalidJob:
    return InvalidJob([Problem(field=field, message=message)])


def read(data: bytes) -> Decoded:
    """What the child does. Raises Refused."""
    readers: dict[bytes, Callable[[bytes], np.ndarray]] = {b"PK\x03\x04": read_npz, b"\x93NUM": read_npy}
    if reader := readers.get(data[:4]):
        return latent(reader(data))
    if data[8:10] == b'{"':
        return latent(read_safetensors(data))
    return as_png("image", read_picture(data))


def read_mask(data: bytes) -> Decoded:
    """What the child does with a mask. Raises Refused."""
    picture = open_picture(data, ("PNG",))
    colors = picture if picture.mode.startswith("I") else picture.convert("RGB")
    moving = np.asarray(colors).reshape(picture.height, picture.width, -1).any(axis=2)
    return as_png("mask", Image.fromarray(moving))


def as_png(kind: Literal["image", "mask"], picture: Image.Image) -> Decoded:
    out = io.BytesIO()
    picture.save(out, format="PNG", compress_level=3)
    return Decoded(kind=kind, width=picture.width, height=picture.height, data=out.getvalue())


def read_picture(data: bytes) -> Image.Image:
    """Upright, in sRGB, without alpha (white shows where it was clear)."""
    picture = open_picture(data, FORMATS)
    try:
        return flattened(in_srgb(ImageOps.exif_transpose(picture)))
    except (OSError, SyntaxError, ValueError) as error:
        raise Refused("has metadata that cannot be read") from error


def open_picture(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Decoded once its size is known to be within the limit."""
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


def in_srgb(image: Image.Image) -> Image.Image:
    """Converted from the colors of its ICC profile, where it has one that can be read."""
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
        tensors = dict(deserialize(data))  # type: ignore[no-untyped-call]
    except (SafetensorError, ValueError, TypeError) as error:
        raise Refused("is not a .safetensors that can be read") from error
    if "w" not in tensors:
        raise Refused("a .safetensors must hold a tensor named w")
    w = tensors["w"]
    if w["dtype"] not in NUMBERS:
        raise Refused(f"w must be {', '.join(NUMBERS)} in a .safetensors, is {w['dtype']}")
    return np.frombuffer(w["data"], dtype=NUMBERS[w["dtype"]]).reshape(w["shape"])


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
