"""Work that ends with its client: a function in a thread, which is told when the request's client has gone."""

import asyncio
from collections.abc import Callable
from threading import Event
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.exceptions import HTTPException

from jobs.cancellation import Canceled, cancelable

T = TypeVar("T")
CLIENT_GONE = 499  # nobody reads it; what logs and metrics call a request whose client has gone


async def run_while_connected(request: Request, function: Callable[[], T], limiter: CapacityLimiter | None = None) -> T:
    """Run a function in a thread; where it calls `jobs.cancellation.check_canceled`, it ends once the client has gone.

    The request's body must have been read.

    Raises:
        HTTPException: the client has gone.
    """
    gone = Event()

    def run() -> T:
        with cancelable(gone):
            return function()

    watcher = asyncio.create_task(set_when_gone(request, gone))
    try:
        return await to_thread.run_sync(run, limiter=limiter)
    except Canceled as error:
        raise HTTPException(CLIENT_GONE, "the client has gone") from error
    finally:
        watcher.cancel()


async def set_when_gone(request: Request, gone: Event) -> None:
    """Set the event when the client disconnects."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    gone.set()
