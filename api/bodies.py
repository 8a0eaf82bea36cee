"""Reading request bodies: never more bytes than allowed, never more in memory at once than the process has room for."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from python_multipart.multipart import parse_options_header
from starlette.requests import Request
from starlette.types import Message, Receive

from api.media_types import MediaType
from jobs.errors import Busy, InvalidJob, Problem

MAX_JSON_BYTES = 2**16  # of a small document, such as a webhook
MAX_JSON_VALUES = 10_000
SMALL_BYTES = 2**16  # a body that counts against no budget
WITHOUT_BODY = ("GET", "HEAD", "OPTIONS", "DELETE")
MAX_BOUNDARY_BYTES = 70  # RFC 2046
MAX_PART_HEAD_BYTES = 4096
WAIT_S = 10.0  # how long a request waits until there is room for its body


class BodyTooLarge(Exception):
    """Raised when a body has more than it may have. The message names the limit."""

    def __init__(self, limit: str) -> None:
        super().__init__(f"the body may have {limit}")


class ByteBudget:
    """The room for bodies, in memory or in files, shared by all requests of the process; a tenant has a part of it."""

    def __init__(self, total_bytes: int, tenant_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.tenant_bytes = tenant_bytes
        self.used: Counter[str] = Counter()  # bytes by tenant
        self.freed = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, tenant: str) -> AsyncIterator["Room"]:
        """Give room to a body as it needs it, and take it back when the context closes."""
        room = Room(self, tenant)
        try:
            yield room
        finally:
            await room.free()

    def has_room(self, tenant: str, size_bytes: int) -> bool:
        """Return whether so many more bytes of the tenant fit."""
        return self.used[tenant] + size_bytes <= self.tenant_bytes and self.used.total() + size_bytes <= self.total_bytes


class Room:
    """The room that one body holds."""

    def __init__(self, budget: ByteBudget, tenant: str) -> None:
        self.budget = budget
        self.tenant = tenant
        self.held_bytes = 0

    async def grow(self, size_bytes: int) -> None:
        """Hold room for a body of so many bytes. Raises Busy when there is none in time."""
        more = size_bytes - self.held_bytes
        if size_bytes <= SMALL_BYTES or more <= 0:
            return
        budget = self.budget
        async with budget.freed:
            try:
                await asyncio.wait_for(budget.freed.wait_for(lambda: budget.has_room(self.tenant, more)), WAIT_S)
            except TimeoutError:
                raise Busy(f"too many large bodies arrive at once: no room within {WAIT_S:g} s") from None
            budget.used[self.tenant] += more
            self.held_bytes = size_bytes

    async def free(self) -> None:
        """Give the room back."""
        if self.held_bytes:
            self.budget.used -= Counter({self.tenant: self.held_bytes})  # forgets a tenant that holds none
            self.held_bytes = 0
            async with self.budget.freed:
                self.budget.freed.notify_all()


async def limit_body(request: Request, receive: Receive, max_bytes: int, room: Room) -> Receive:
    """Return what receives a body within its limit and its room.

    A declared length is held at once; a body of unknown length holds what has arrived.

    Raises:
        BodyTooLarge, Busy.
    """
    if "transfer-encoding" not in request.headers and request.method not in WITHOUT_BODY:
        declared = int(request.headers.get("content-length", 0))
        if declared > max_bytes:
            raise BodyTooLarge(f"{max_bytes} bytes")
        await room.grow(declared)
    received = 0

    async def receive_and_count() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > max_bytes:
            raise BodyTooLarge(f"{max_bytes} bytes")
        await room.grow(received)
        return message

    return receive_and_count


async def read_body(request: Request, max_bytes: int) -> bytearray:
    """Read a body. Raises BodyTooLarge."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            raise BodyTooLarge(f"{max_bytes} bytes")
    return body


def check_json_values(text: bytes | bytearray, max_values: int) -> None:
    """Refuse JSON of more values than any document of its kind needs, before it is parsed.

    Each value follows a comma or a bracket, so that their number, which may count some in texts too, is a bound.

    Raises:
        BodyTooLarge.
    """
    if text.count(b",") + text.count(b"[") + text.count(b"{") > max_values:
        raise BodyTooLarge(f"{max_values} JSON values")


def split_parts(body: bytearray, media_type: MediaType, max_parts: int) -> list[tuple[str, bytes]]:
    """Split a multipart body into the names and contents of its parts, by RFC 2046 and 7578.

    Raises:
        InvalidJob: it has no boundary or too many parts, is cut short, or a part has no name.
    """
    if not 0 < len(media_type.boundary) <= MAX_BOUNDARY_BYTES:
        raise malformed(f"Content-Type must name a boundary of 1 to {MAX_BOUNDARY_BYTES} bytes")
    view, delimiter = memoryview(body), b"\r\n--" + media_type.boundary
    parts: list[tuple[str, bytes]] = []
    before = -2 if body.startswith(delimiter[2:]) else body.find(delimiter)  # the first boundary may lack its line break
    if before == -1:
        raise malformed("has no part that its boundary begins")
    at = before + len(delimiter)
    while body[at : at + 2] != b"--":
        end = body.find(delimiter, at)
        head_end = body.find(b"\r\n\r\n", at, end)
        if end < 0 or head_end < 0 or body[at : at + 2] != b"\r\n":
            raise malformed("is cut short, or has a part without headers")
        if len(parts) == max_parts:
            raise malformed(f"may have {max_parts} parts")
        parts.append((part_name(bytes(view[at + 2 : head_end])), bytes(view[head_end + 4 : end])))
        at = end + len(delimiter)
    return parts


def part_name(head: bytes) -> str:
    """Return the name of a part by its headers. Raises InvalidJob when it has none."""
    if len(head) > MAX_PART_HEAD_BYTES:
        raise malformed(f"the headers of a part may have {MAX_PART_HEAD_BYTES} bytes")
    for line in head.split(b"\r\n"):
        header, _, value = line.partition(b":")
        if header.strip().lower() == b"content-disposition":
            _, options = parse_options_header(value)
            if b"name" in options:
                return options[b"name"].decode("utf-8", "replace")
    raise malformed("a part has no name: Content-Disposition: form-data; name=...")


def malformed(message: str) -> InvalidJob:
    return InvalidJob([Problem(field="body", message=message)])
