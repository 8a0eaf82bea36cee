"""Waiting for a server that is away: a running job waits, then goes on."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import InternalError, OperationalError, TimeoutError

from jobs.backoff import Backoff
from jobs.errors import StorageUnavailable

Result = TypeVar("Result")
SERVER_UNAVAILABLE = (StorageUnavailable, OperationalError, TimeoutError, InternalError)  # the last from a standby
PAUSES = Backoff(first_s=0.05, limit_s=2.0)
logger = logging.getLogger(__name__)


def retry_while_unavailable(
    action: Callable[[], Result],
    limit_s: float,
    is_abandoned: Callable[[], bool] = lambda: False,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Result:
    """Repeat the action until the server answers, with growing pauses and one line in the log.

    Args:
        limit_s: no repetition begins later than this many seconds after the first try; the error rises instead.
        is_abandoned: asked before each pause; True lets the error rise at once.
        sleep: waits for so many seconds.
        clock: returns the seconds of a clock that never steps back.
    """
    until, failures = clock() + limit_s, 0
    while True:
        try:
            return action()
        except SERVER_UNAVAILABLE as error:
            pause_s = PAUSES.delay_s(failures)
            if clock() + pause_s > until or is_abandoned():
                raise
            if not failures:
                logger.warning("waiting for a server: %s", str(error).splitlines()[0])
        sleep(pause_s)
        failures += 1
