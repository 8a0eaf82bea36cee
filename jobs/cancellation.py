"""The end of work whose client has gone: what works for long asks here whether anybody still waits for it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Event

CANCELED: ContextVar[Event | None] = ContextVar("CANCELED", default=None)  # of the request that this thread works for


class Canceled(Exception):
    """Raised where work ends because nobody waits for it any more."""


@contextmanager
def cancelable(event: Event) -> Iterator[None]:
    """Let the work inside end with Canceled once the event is set."""
    token = CANCELED.set(event)
    try:
        yield
    finally:
        CANCELED.reset(token)


def check_canceled() -> None:
    """Raise Canceled when nobody waits for this work any more."""
    event = CANCELED.get()
    if event is not None and event.is_set():
        raise Canceled
