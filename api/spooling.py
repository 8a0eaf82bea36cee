"""Bodies that are too large for memory: they are written to a file while they arrive."""

import hashlib
from collections.abc import Iterator
from typing import IO

from anyio import CapacityLimiter, to_thread
from fastapi import Request

WRITERS = CapacityLimiter(4)  # threads that write
BLOCK_BYTES = 2**20  # written at once, in a thread: the disk may be slow


async def spool_body(request: Request, file: IO[bytes]) -> str:
    """Write the body to a file and return its sha256. Raises ClientDisconnect."""
    digest, block = hashlib.sha256(), bytearray()
    async for chunk in request.stream():
        digest.update(chunk)
        block += chunk
        if len(block) >= BLOCK_BYTES:
            await to_thread.run_sync(file.write, block, limiter=WRITERS)
            block = bytearray()
    await to_thread.run_sync(file.write, block, limiter=WRITERS)
    file.seek(0)
    return digest.hexdigest()


def read_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the file from its beginning in blocks."""
    file.seek(0)
    while block := file.read(BLOCK_BYTES):
        yield block
