"""Whether this worker was asked to end: heard by the parent or by its child, known to both."""

import multiprocessing
import time


class Drain:
    """A request to end, in memory that parent and child share: to be made before the fork."""

    def __init__(self) -> None:
        self.since = multiprocessing.get_context("fork").Value("d", 0.0)  # monotonic seconds, one clock for all processes

    def request(self) -> None:
        """Ask the worker to end; only the first request counts."""
        with self.since:
            self.since.value = self.since.value or time.monotonic()

    @property
    def requested(self) -> bool:
        """Whether the worker was asked to end."""
        return bool(self.since.value)

    def is_overdue(self, grace_s: float) -> bool:
        """Return whether a job that still runs should be handed back."""
        return self.requested and bool(time.monotonic() - self.since.value >= grace_s)
