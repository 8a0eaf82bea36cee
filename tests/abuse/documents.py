"""What attackers send: documents at the limits and beyond them, and pictures that are small to send and large to read."""

import io
import json
import random
import zlib
from itertools import count

from PIL import Image

BODY_BYTES = 29 * 10**6
MEGAPIXELS_50 = (7071, 7071)
JOB = {"model": "idle", "source": {"seed": 3}, "points": [{"handle": [10, 10], "target": [20, 12]}], "retain_for_s": 3600}
POST_ROUTES = (
    "/v1/jobs", "/v1/jobs:validate", "/v1/webhooks", "/v1/uploads/presigned", "/v1/uploads", "/v1/batches",
)  # fmt: skip
SEEDS = count(1)


def as_json(document: object) -> bytes:
    return json.dumps(document).encode()


def repeated(unit: bytes, *, begin: bytes = b"", end: bytes = b"", size: int = BODY_BYTES) -> bytes:
    """Repeat a unit until the whole has about a size."""
    return begin + unit * ((size - len(begin) - len(end)) // len(unit)) + end


def arrays() -> bytes:
    """Return JSON that takes thirty times its bytes as Python's lists."""
    return repeated(b"[],", begin=b"[", end=b"[]]")


def million_keys(prefix: str = "") -> bytes:
    """Return a document with a million fields that nobody knows."""
    fields = ",".join(f'"{prefix}{number}":0' for number in range(10**6))
    return f'{{"model":"idle",{fields}}}'.encode()


def largest_job(model: str = "idle", left: float = 0.0) -> bytes:
    """Return the largest job that the contract lets in: 64 points, 64 shapes of 256 points, 16 kB of metadata.

    Args:
        left: where most of the polygons begin, in pixels; outside the picture nothing of them is drawn.
    """
    random.seed(0)

    def point(begin: float, end: float) -> list[float]:
        return [random.uniform(begin, end), random.uniform(begin, end)]

    polygons = [{"polygon": [point(left, left + 32) for _ in range(256)]} for _ in range(63)]
    job = JOB | {
        "model": model,
        "points": [{"handle": point(0, 31), "target": point(0, 31)} for _ in range(64)],
        "movable": {"shapes": [{"polygon": [point(0, 32) for _ in range(256)]}, *polygons]},
        "metadata": {"text": "x" * 16_000},
    }
    return as_json(job)


def picture(size: tuple[int, int], mode: str = "L", kind: str = "PNG", **options: object) -> bytes:
    """Return a picture of one color."""
    out = io.BytesIO()
    Image.new(mode, size, 255 if mode in ("L", "1") else (9, 99, 199)).save(out, format=kind, **options)
    return out.getvalue()


def noise(size: tuple[int, int], kind: str = "PNG") -> bytes:
    """Return a picture of noise, that is large to send too."""
    out = io.BytesIO()
    Image.frombytes("RGB", size, random.Random(0).randbytes(3 * size[0] * size[1])).save(out, format=kind)
    return out.getvalue()


def many_scans(scans: int = 5000, size: tuple[int, int] = (4000, 4000)) -> bytes:
    """Return a progressive JPEG whose last scan is there thousands of times."""
    out = io.BytesIO()
    Image.new("L", size, 128).save(out, format="JPEG", progressive=True, quality=50)
    data = out.getvalue()
    begin = data.rfind(b"\xff\xda")
    scan = data[begin : data.rfind(b"\xff\xd9")]
    return data[:begin] + scan * scans + b"\xff\xd9"


def png_with_chunk(name: bytes, data: bytes) -> bytes:
    """Return a small PNG with a chunk of one's own before the pixels."""
    plain = picture((16, 16))
    at = plain.index(b"IDAT") - 4
    chunk = len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    return plain[:at] + chunk + plain[at:]


def multipart(parts: list[tuple[str, bytes]], boundary: str = "b") -> bytes:
    """Return a multipart body of parts, each given by its headers and its bytes."""
    pieces = [f"--{boundary}\r\n{headers}\r\n\r\n".encode("latin-1") + body + b"\r\n" for headers, body in parts]
    return b"".join(pieces) + f"--{boundary}--\r\n".encode()


def form_field(name: str, body: bytes, *, file: bool = False) -> tuple[str, bytes]:
    return f'Content-Disposition: form-data; name="{name}"' + ('; filename="f"' if file else ""), body


def lines(job: dict[str, object] | bytes, how_many: int) -> bytes:
    """Return a batch of equal jobs."""
    job = job if isinstance(job, bytes) else as_json(job)
    return b"".join(b'{"custom_id":"%d","job":%s}\n' % (number, job) for number in range(how_many))
