"""Several jobs of one model in one process, each in a thread of its own; their drags make their steps together."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch

from jobs.tables import Job
from worker.slots.dynamic_batcher import DynamicBatcher, RenderLock

REFILL_S = 600.0  # then others of the pool's models have their turn
LOOK_S = 0.5  # between two looks for one more job
WAIT_S = 0.02
MEETINGS = 2  # on a CPU: one thread each for two halves of the drags gets more done than two for all
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slot:
    """One that is taken."""

    thread: threading.Thread
    meeting: DynamicBatcher


class Slots:
    def __init__(
        self, count: int, claim: Callable[[], Job | None], run: Callable[[Job, DynamicBatcher], None], ending: Callable[[], bool],
        fits: Callable[[int], bool] = lambda running: True, meetings: int = 1,
    ) -> None:  # fmt: skip
        """Args:
        count: jobs at once.
        claim: one more job that may run beside the first; None when there is none, or it is another's turn.
        run: a job to its end; raises nothing.
        ending: whether no more jobs are wanted.
        fits: whether memory suffices for one more beside so many that run.
        meetings: that make their steps beside each other; they share the threads that compute.
        """
        self.count = count
        self.claim = claim
        self.run_one = run
        self.ending = ending
        self.fits = fits
        self.threads = torch.get_num_threads()
        lock = threading.Lock()
        self.meetings = [
            DynamicBatcher(RenderLock(self.threads, lock), partial(self.share, number)) for number in range(meetings)
        ]
        self.taken: list[Slot] = []
        self.looked = 0.0  # when there was nothing to claim

    def run(self, first: Job) -> None:
        """Until all have ended."""
        until = time.monotonic() + REFILL_S
        self.begin(first)
        with ExitStack() as serving:
            for meeting in self.meetings:
                serving.enter_context(meeting.serving())
            while self.taken:
                if time.monotonic() < until and not self.ending():
                    self.refill()
                self.taken[0].thread.join(WAIT_S)
                living = [slot for slot in self.taken if slot.thread.is_alive()]
                if len(living) < len(self.taken):
                    self.looked = 0.0
                self.taken = living

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
        running, made = len(self.taken), sum(meeting.most_served for meeting in self.meetings)
        return running < min(self.count, max(2, 2 * made)) and self.fits(running)

    def begin(self, job: Job) -> None:
        meeting = min(self.meetings, key=lambda meeting: sum(slot.meeting is meeting for slot in self.taken))
        thread = threading.Thread(target=self.run_slot, args=(job, meeting), name=f"job {job.id}", daemon=True)
        thread.start()
        self.taken.append(Slot(thread, meeting))

    def run_slot(self, job: Job, meeting: DynamicBatcher) -> None:
        torch.set_num_threads(self.threads)  # else as many as a meeting took last
        self.run_one(job, meeting)

    def share(self, number: int) -> int:
        """Threads for the next step of a meeting; the first of those with drags take what is over."""
        busy = [meeting.active > 0 for meeting in self.meetings]
        each, over = divmod(self.threads, max(1, sum(busy)))
        return max(1, each + (sum(busy[:number]) < over))


def meetings_on(device: torch.device) -> int:
    """A GPU runs one step after another."""
    return min(MEETINGS, torch.get_num_threads()) if device.type == "cpu" else 1
