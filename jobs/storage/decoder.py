"""The decoder of uploads, a child process with limits of its own, so that no file can harm the API's process.

`python -m jobs.storage.decoder picture|mask|outline` reads a file on standard input and writes it re-encoded to standard output,
both files that it can seek in, and what it is as JSON to standard error; or it exits with REFUSED and a sentence there.
`outline` re-encodes nothing: it reads a mask that is stored already.
"""

import hashlib
import json
import mmap
import os
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import IO, Literal

import numpy as np
from PIL import Image
from safetensors.numpy import save as save_safetensors

from jobs.storage.latents import is_latent, read_latent
from jobs.storage.mask_outline import MaskOutline
from jobs.storage.picture_files import Refused, check_structure
from jobs.storage.pictures import Budget, no_budget, read_mask, read_picture, write_png

Kind = Literal["image", "mask", "latent"]
REFUSED = 2
IDLE_BYTES = 110 * 2**20  # of addresses before a file is read; most of them are never touched
MEMORY_BYTES = 720 * 2**20  # of addresses; with IDLE_BYTES mostly untouched, the child takes less than 700 MB
CPU_S = 10
PIXELS_PER_CPU_S = 6_000_000
FIRST_CPU_S = 3  # for a picture without pixels; a fast core needs a tenth of a second
BYTES_PER_PIXEL = 12  # one copy decoded, one converted, and the coefficients of a progressive JPEG
LEAST_MEMORY_BYTES = IDLE_BYTES + 150 * 2**20


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a file is."""

    kind: Kind
    width: int  # pixels; of a latent the numbers in a row
    height: int  # pixels; of a latent its rows
    outline: str | None = None  # of a mask, in hexadecimal digits


def read(file: IO[bytes], out: IO[bytes], budget: Budget = no_budget) -> Description:
    """Decode a photo or a latent and write it re-encoded. Raises Refused."""
    head = file.read(10)
    file.seek(0)
    if is_latent(head):
        rows = read_latent(file)
        out.write(save_safetensors({"w": rows}))
        return Description(kind="latent", width=rows.shape[2], height=rows.shape[1])
    check_file(file)
    picture = read_picture(file, budget)
    write_png(picture, out)
    return Description(kind="image", width=picture.width, height=picture.height)


def read_mask_file(file: IO[bytes], out: IO[bytes], budget: Budget = no_budget) -> Description:
    """Decode a movable mask and write it with one bit a pixel. Raises Refused."""
    check_file(file)
    mask = read_mask(file, budget)
    write_png(Image.fromarray(mask), out)
    return describe_mask(mask)


def read_outline(file: IO[bytes], out: IO[bytes], budget: Budget = no_budget) -> Description:
    """Describe a mask that is stored. Raises Refused."""
    return describe_mask(read_mask(file, budget))


def describe_mask(mask: np.ndarray) -> Description:
    height, width = mask.shape
    return Description(kind="mask", width=width, height=height, outline=MaskOutline.of(mask).to_bytes().hex())


def check_file(file: IO[bytes]) -> None:
    """Check the structure of a picture's file, mapped so that it takes no memory of its own. Raises Refused."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            check_structure(data)


def limit_process() -> None:
    """Limit this process to the most that any file may take, and let the service go first."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (FIRST_CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)


def limit_picture(pixels: int, needed_bytes: int) -> None:
    """Limit this process to what a picture of that size takes. Raises Refused."""
    needed = IDLE_BYTES + needed_bytes
    if needed > MEMORY_BYTES:
        raise Refused(f"needs {needed / 1e6:.0f} MB to be read, {MEMORY_BYTES / 1e6:.0f} MB are allowed: send it as a JPEG")
    memory = max(LEAST_MEMORY_BYTES + BYTES_PER_PIXEL * pixels, needed)
    resource.setrlimit(resource.RLIMIT_AS, (min(memory, MEMORY_BYTES), MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (min(FIRST_CPU_S + pixels // PIXELS_PER_CPU_S, CPU_S), CPU_S))


COMMANDS: dict[str, Callable[[IO[bytes], IO[bytes], Budget], Description]] = {
    "picture": read,
    "mask": read_mask_file,
    "outline": read_outline,
}


def main() -> None:
    """Decode the file on standard input."""
    limit_process()
    Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked before anything is decoded
    try:
        with os.fdopen(0, "rb", closefd=False) as file, os.fdopen(1, "r+b", closefd=False) as out:
            description = asdict(COMMANDS[sys.argv[1]](file, out, limit_picture))
            out.seek(0)
            description["sha256"] = hashlib.file_digest(out, "sha256").hexdigest()
    except (Refused, MemoryError) as error:
        sys.stderr.write(str(error) or "takes more memory to read than is allowed")
        sys.exit(REFUSED)
    sys.stderr.write(json.dumps(description))


if __name__ == "__main__":
    main()
