"""Decoding of uploads in child processes (`jobs.storage.decoder`) that tenants share fairly.

Files go in and come out by temporary files: no picture lies in the memory of this process, decoded or not.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import IO, Any

from jobs.cancellation import check_canceled
from jobs.errors import InvalidJob, Problem
from jobs.storage.decoder import REFUSED, Kind
from jobs.storage.decoder_turns import DecoderTurns
from jobs.storage.mask_outline import MaskOutline

MAX_BYTES = 30 * 10**6  # of a file in one request
WAIT_S = 5.0  # how long an upload waits for a child
WALL_S = 40  # of a child; its time of CPU has limits of its own
POLL_S = 0.2  # between two looks at whether the client still waits
LAST_WORDS_BYTES = 2**17  # of what a child says
DECODER = "jobs.storage.decoder"
TURNS = DecoderTurns(max(2, os.cpu_count() or 1))  # of this process


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """An upload, checked and re-encoded: equal pictures give equal bytes."""

    kind: Kind
    width: int  # pixels; of a latent the numbers in a row
    height: int  # pixels; of a latent its rows
    sha256: str  # the name of this upload
    outline: bytes | None = None  # of a mask, as it is stored
    tenant: str = field(default="", compare=False)  # whose share of the children it took
    body: IO[bytes] = field(compare=False, repr=False)  # PNG without metadata, of a mask with one bit a pixel; or safetensors

    def __post_init__(self) -> None:
        weakref.finalize(self, self.body.close)  # the file has no name and ends with the last user of the upload

    @property
    def media_type(self) -> str:
        return "application/octet-stream" if self.kind == "latent" else "image/png"

    @property
    def size_bytes(self) -> int:
        """Return the length of the body."""
        return self.body.seek(0, os.SEEK_END)

    @property
    def data(self) -> bytes:
        """Return the body."""
        self.body.seek(0)
        return self.body.read()


@dataclass(frozen=True)
class Answer:
    """What a child has said and written."""

    description: dict[str, Any]
    out: IO[bytes]


def decode(data: bytes, field: str, tenant: str = "", wait_s: float = WAIT_S) -> Decoded:
    """Decode a photo or a latent.

    Args:
        field: the field of the request that problems name.
        tenant: whose share of the children it takes.
        wait_s: how long to wait while as many children run as may.

    Raises:
        InvalidJob, DecoderBusy, Canceled.
    """
    return decode_stream(limit_size(data, field), None, field, tenant, wait_s)


def decode_mask(data: bytes, field: str, tenant: str = "") -> Decoded:
    """Decode a movable mask: a PNG, set where any channel but alpha is not zero. Raises InvalidJob, DecoderBusy, Canceled."""
    return decode_stream(limit_size(data, field), "mask", field, tenant)


def limit_size(data: bytes, field: str) -> list[bytes]:
    """Return the data as the only part. Raises InvalidJob when it is too large."""
    check_size(len(data), field)
    return [data]


def check_size(size_bytes: int, field: str) -> None:
    """Raise InvalidJob when a file is too large for one request."""
    if size_bytes > MAX_BYTES:
        raise refusal(field, f"may have {MAX_BYTES / 1e6:g} MB, has {size_bytes / 1e6:.1f} MB")


def decode_stream(parts: Iterable[bytes], kind: str | None, field: str, tenant: str = "", wait_s: float = WAIT_S) -> Decoded:
    """Decode a photo, a latent or a mask of any size.

    Raises:
        InvalidJob, DecoderBusy, Canceled, and whatever the parts raise.
    """
    answer = run_child([DECODER, "mask" if kind == "mask" else "picture"], parts, field, tenant, wait_s)
    outline = answer.description.pop("outline")
    stored_outline = None if outline is None else bytes.fromhex(outline)
    return Decoded(**answer.description, outline=stored_outline, tenant=tenant, body=answer.out)


def read_outline(parts: Iterable[bytes], field: str, tenant: str, wait_s: float = WAIT_S) -> MaskOutline:
    """Return the outline of a mask that is stored. Raises InvalidJob, DecoderBusy, Canceled, and whatever the parts raise."""
    answer = run_child([DECODER, "outline"], parts, field, tenant, wait_s)
    answer.out.close()
    return MaskOutline.from_bytes(bytes.fromhex(answer.description["outline"]))


def run_child(arguments: list[str], parts: Iterable[bytes], field: str, tenant: str, wait_s: float = WAIT_S) -> Answer:
    """Start a module as a child as soon as one may run, with the parts as its input, and return its answer.

    Raises:
        InvalidJob, DecoderBusy, Canceled, and whatever the parts raise: nothing is started then.
    """
    with TURNS.turn(tenant, wait_s), tempfile.TemporaryFile() as file:
        for part in parts:
            file.write(part)
            check_canceled()
        file.seek(0)
        return answer_of(arguments, file, field)


def answer_of(arguments: list[str], file: IO[bytes], field: str) -> Answer:
    """Run a child on a file. Raises InvalidJob, Canceled."""
    out = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the answer
    try:
        returncode, said = run_to_end(arguments, file, out)
        if returncode == 0:
            return Answer(json.loads(said), out)
    except BaseException:
        out.close()
        raise
    out.close()
    if returncode is None:
        raise refusal(field, f"takes longer than {WALL_S} s to read")
    if returncode == REFUSED:
        raise refusal(field, said)
    raise refusal(field, "cannot be read within the limits of memory and time")


def run_to_end(arguments: list[str], file: IO[bytes], out: IO[bytes]) -> tuple[int | None, str]:
    """Run a child; return its exit status, None when it was killed for its time, and the last line that it said."""
    command = [sys.executable, "-P", "-W", "ignore", "-m", *arguments]
    with tempfile.TemporaryFile() as words:
        with subprocess.Popen(command, stdin=file, stdout=out, stderr=words, env=child_environment()) as child:
            try:
                ended_in_time = wait(child)
            finally:
                child.kill()
        words.seek(max(0, words.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
        lines = words.read().decode(errors="replace").splitlines()
    return child.returncode if ended_in_time else None, lines[-1] if lines else ""


def wait(child: subprocess.Popen[bytes]) -> bool:
    """Wait for the end of a child and return whether it came in time. Raises Canceled."""
    deadline = time.monotonic() + WALL_S
    while time.monotonic() < deadline:
        try:
            child.wait(POLL_S)
        except subprocess.TimeoutExpired:
            check_canceled()
        else:
            return True
    return False


def child_environment() -> dict[str, str]:
    """Return the child's environment: no secrets, and one thread, since each reserves memory that counts against the limit."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR") if name in os.environ}
    return kept | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def refusal(field: str, message: str) -> InvalidJob:
    return InvalidJob([Problem(field=field, message=message)])
