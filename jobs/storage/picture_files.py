"""The structure of picture files, read before anything is decoded: small files can ask for hours of work or all of the memory."""

import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass

MAX_SCANS = 100  # of a JPEG; encoders write about ten
MAX_SCAN_PIXELS = 10**9  # scans times pixels: every scan goes over the whole picture
MAX_SEGMENTS = 4_000  # of a JPEG; 255 of them hold the largest color profile
MAX_CHUNKS = 1_000  # of a PNG or WebP, besides one for each KB
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)  # none of the markers that lie within a scan
START_OF_IMAGE, END_OF_IMAGE, START_OF_SCAN = b"\xff\xd8", 0xD9, 0xDA
ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # markers that begin with the picture's size
PNG = b"\x89PNG\r\n\x1a\n"
Buffer = bytes | mmap.mmap


class Refused(Exception):
    """Raised when the bytes are nothing that can be uploaded."""


@dataclass(frozen=True)
class Segment:
    """A marker of a JPEG and where its content begins."""

    marker: int
    start: int


def check_structure(data: Buffer) -> None:
    """Check that decoding the file costs no more than its pixels. A broken file is left to its decoder. Raises Refused."""
    if data[:2] == START_OF_IMAGE:
        check_jpeg(data)
    elif data[:8] == PNG:
        check_png(data)
    elif data[:4] == b"RIFF":
        check_webp(data)


def check_jpeg(data: Buffer) -> None:
    """Count segments and scans. Raises Refused."""
    scans = pixels = 0
    for count, segment in enumerate(segments(data), start=1):
        if count > MAX_SEGMENTS:
            raise Refused(f"may have {MAX_SEGMENTS} segments, has more")
        if segment.marker in FRAMES:
            height, width = (int.from_bytes(data[segment.start + at : segment.start + at + 2], "big") for at in (1, 3))
            pixels = max(pixels, width * height)
        if segment.marker == START_OF_SCAN:
            scans += 1
        if scans > MAX_SCANS or scans * pixels > MAX_SCAN_PIXELS:
            most = min(MAX_SCANS, MAX_SCAN_PIXELS // max(1, pixels))
            raise Refused(f"may have {most} scans with {pixels / 1e6:.1f} megapixels, has more: save it as a baseline JPEG")


def segments(data: Buffer) -> Iterator[Segment]:
    """Yield the segments of a JPEG up to its end, or to where it breaks off."""
    at = 2
    while found := MARKER.search(data, at):
        marker, at = data[found.start() + 1], found.end()
        if marker == END_OF_IMAGE:
            return
        if marker in ALONE:
            continue
        yield Segment(marker, at + 2)
        at += max(2, int.from_bytes(data[at : at + 2], "big"))


def check_png(data: Buffer) -> None:
    """Count the chunks of a PNG up to its end. Raises Refused."""
    limit = MAX_CHUNKS + len(data) // 1024
    at = len(PNG)
    for _ in range(limit):
        if at + 8 > len(data) or data[at + 4 : at + 8] == b"IEND":
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise Refused(f"may have {limit} chunks as a PNG of {len(data)} bytes, has more")


def check_webp(data: Buffer) -> None:
    """Count the chunks of a WebP. Raises Refused."""
    at, end = 12, min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    for _ in range(MAX_CHUNKS):
        if at + 8 > end:
            return
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        at += 8 + size + size % 2
    raise Refused(f"may have {MAX_CHUNKS} chunks as a WebP, has more")
