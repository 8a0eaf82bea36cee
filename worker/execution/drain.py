"""Whether this worker was asked to end: heard by the parent or by its child, known to both."""

import multiprocessing
import time


class Drain:
    """Made before the fork, in memory that parent and child share."""

    def __init__(self) -> None:
        self.since = multiprocessing.get_context("fork").Value("d", 0.0)  # monotonic seconds, one clock for all processes

    def ask(self) -> None:
        with self.since:
            self.since.value = self.since.value or time.monotonic()

    @property
    def asked(self) -> bool:
        return bool(self.since.value)

    def overdue(self, grace_s: float) -> bool:
        """Whether a job that still runs should be handed back."""
        return self.asked and bool(time.monotonic() - self.since.value >= grace_s)
