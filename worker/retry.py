"""Waiting for a server that is away: a running job goes on and catches up."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InternalError, OperationalError, TimeoutError

from jobs.errors import StorageUnavailable

Answer = TypeVar("Answer")
SERVER_UNAVAILABLE = (StorageUnavailable, OperationalError, TimeoutError, InternalError)  # the last from a standby
LONGEST_PAUSE_S = 2.0
logger = logging.getLogger(__name__)


def retry_while_unavailable(action: Callable[[], Answer], limit_s: float, give_up: Callable[[], bool] = lambda: False) -> Answer:
    """Repeat until the server answers.

    Args:
        limit_s: after this many seconds the error rises.
        give_up: asked before each repetition; True lets the error rise at once.
    """
    until, pause_s = time.monotonic() + limit_s, 0.05
    while True:
        try:
            return action()
        except SERVER_UNAVAILABLE as error:
            if time.monotonic() + pause_s > until or give_up():
                raise
            logger.warning("waiting for a server: %s", str(error).splitlines()[0])
        time.sleep(pause_s)
        pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
