"""Several jobs of one model in one process, each in a thread of its own; their drags make their steps together."""

import logging
import threading
import time
from collections.abc import Callable

from jobs.models import Job
from worker.meeting import Meeting

REFILL_S = 600.0  # then others of the pool's models have their turn
LOOK_S = 0.5  # between two looks for one more job
WAIT_S = 0.02
logger = logging.getLogger(__name__)


class Slots:
    def __init__(
        self, count: int, claim: Callable[[], Job | None], run: Callable[[Job, Meeting], None], ending: Callable[[], bool],
        fits: Callable[[int], bool] = lambda running: True,
    ) -> None:  # fmt: skip
        """Args:
        count: jobs at once.
        claim: one more job that may run beside the first; None when there is none, or it is another's turn.
        run: a job to its end; raises nothing.
        ending: whether no more jobs are wanted.
        fits: whether memory suffices for one more beside so many that run.
        """
        self.count = count
        self.claim = claim
        self.run_one = run
        self.ending = ending
        self.fits = fits
        self.meeting = Meeting()
        self.threads: list[threading.Thread] = []
        self.looked = 0.0  # when there was nothing to claim

    def run(self, first: Job) -> None:
        """Until all have ended."""
        until = time.monotonic() + REFILL_S
        self.begin(first)
        with self.meeting.served():
            while self.threads:
                if time.monotonic() < until and not self.ending():
                    self.refill()
                self.threads[0].join(WAIT_S)
                living = [thread for thread in self.threads if thread.is_alive()]
                if len(living) < len(self.threads):
                    self.looked = 0.0
                self.threads = living

    def refill(self) -> None:
        """Take jobs while there are free slots and jobs for them."""
        while self.is_room() and time.monotonic() - self.looked >= LOOK_S:
            try:
                job = self.claim()
                if job is not None:
                    self.begin(job)
            except Exception as error:  # those that run must not suffer
                logger.warning("no more jobs for now: %s", error)
                job = None
            if job is None:
                self.looked = time.monotonic()

    def is_room(self) -> bool:
        """For as many again as have made a step together: what that takes is known then."""
        running = len(self.threads)
        return running < min(self.count, max(2, 2 * self.meeting.made)) and self.fits(running)

    def begin(self, job: Job) -> None:
        thread = threading.Thread(target=self.run_one, args=(job, self.meeting), name=f"job {job.id}", daemon=True)
        thread.start()
        self.threads.append(thread)
