"""A TCP proxy before the store that can be made to fail requests with 500, or to let them hang."""

import asyncio
import threading
from typing import Literal

CHUNK = 65_536  # bytes
REFUSAL = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
Mode = Literal["open", "failing", "hanging"]


class FaultyStore:
    """The proxy, on an event loop in a thread of its own; `address` is where it listens."""

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.mode: Mode = "open"
        self.writers: set[asyncio.StreamWriter] = set()
        self.loop = asyncio.new_event_loop()
        self.forwarding = asyncio.Event()
        self.forwarding.set()
        self.handle_connectionr = self.loop.run_until_complete(asyncio.start_server(self.handle_connection, "127.0.0.1", 0))
        self.address = "{}:{}".format(*self.handle_connectionr.sockets[0].getsockname())
        self.thread = threading.Thread(target=self.loop.run_forever, name="faulty store", daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Close every connection and end the thread."""
        asyncio.run_coroutine_threadsafe(self.close_all(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def close_all(self) -> None:
        """Stop listening and cancel what runs, on the loop."""
        self.handle_connectionr.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def set_mode(self, mode: Mode) -> None:
        """Change the mode, from any thread."""
        self.loop.call_soon_threadsafe(self.apply_mode, mode)

    def apply_mode(self, mode: Mode) -> None:
        """Change the mode, on the loop; failing also closes the open connections."""
        self.mode = mode
        if mode == "hanging":
            self.forwarding.clear()
            return
        self.forwarding.set()
        if mode == "failing":
            for writer in self.writers:
                writer.close()

    async def handle_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward one connection, or answer its first request with 500."""
        self.writers.add(writer)
        try:
            await self.forwarding.wait()
            if self.mode == "failing":
                await reader.readuntil(b"\r\n\r\n")
                writer.write(REFUSAL)
                await writer.drain()
            else:
                await self.forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            self.writers.discard(writer)
            writer.close()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy both directions of a connection until one of them ends."""
        upstream_reader, upstream_writer = await asyncio.open_connection(*self.upstream)
        directions = [
            asyncio.create_task(self.copy(reader, upstream_writer)),
            asyncio.create_task(self.copy(upstream_reader, writer)),
        ]
        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        for direction in directions:
            direction.cancel()
        upstream_writer.close()
        await asyncio.gather(*directions, return_exceptions=True)

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Copy one direction of a connection, with a rest while requests hang."""
        while data := await reader.read(CHUNK):
            await self.forwarding.wait()
            writer.write(data)
            await writer.drain()
