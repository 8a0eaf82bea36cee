"""A door before the store that can be shut: requests then fail with 500, or hang."""

import asyncio
import threading
from typing import Literal

CHUNK = 65_536  # bytes
REFUSAL = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
Mode = Literal["open", "failing", "hanging"]


class FaultyStore:
    """Forwards TCP connections to the store while it is open; runs in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        self.upstream = (host, port)
        self.mode: Mode = "open"
        self.writers: set[asyncio.StreamWriter] = set()
        self.loop = asyncio.new_event_loop()
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.server = self.loop.run_until_complete(asyncio.start_server(self.serve, "127.0.0.1", 0))
        self.address = "{}:{}".format(*self.server.sockets[0].getsockname())
        self.thread = threading.Thread(target=self.loop.run_forever, name="faulty store", daemon=True)
        self.thread.start()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self.end(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    async def end(self) -> None:
        self.server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    def turn(self, mode: Mode) -> None:
        self.loop.call_soon_threadsafe(self.change, mode)

    def change(self, mode: Mode) -> None:
        self.mode = mode
        if mode == "hanging":
            self.flowing.clear()
            return
        self.flowing.set()
        if mode == "failing":
            for writer in self.writers:
                writer.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            await self.flowing.wait()
            if self.mode == "failing":
                await reader.readuntil(b"\r\n\r\n")
                writer.write(REFUSAL)
                await writer.drain()
            else:
                await self.forward(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # whoever it was has gone
        finally:
            self.writers.discard(writer)
            writer.close()

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self.upstream)
        ways = [asyncio.create_task(self.pump(reader, back)), asyncio.create_task(self.pump(there, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for way in ways:
            way.cancel()
        back.close()
        await asyncio.gather(*ways, return_exceptions=True)

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(CHUNK):
            await self.flowing.wait()
            writer.write(data)
            await writer.drain()
