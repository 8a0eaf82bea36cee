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
CLAIM_EVERY_S = 0.5  # while there is nothing to claim
POLL_S = 0.02
CPU_BATCHERS = 2  # one thread each for two halves of the drags gets more done than two for all
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Slot:
    """A slot that is taken."""

    thread: threading.Thread
    batcher: DynamicBatcher


class Slots:
    """Room for so many jobs at once, filled as long as there are jobs, memory, and drags that gain by it."""

    def __init__(
        self, count: int, claim: Callable[[], Job | None], process: Callable[[Job, DynamicBatcher], None],
        is_draining: Callable[[], bool], *, fits: Callable[[int], bool] = lambda running: True, batchers: int = 1,
        threads: int | None = None,
    ) -> None:  # fmt: skip
        """Run nothing yet.

        Args:
            count: jobs at once.
            claim: returns one more job that may run beside the first; None when there is none, or it is another's turn.
            process: runs a job to its end; raises nothing.
            is_draining: whether no more jobs are wanted.
            fits: whether memory suffices for one more beside so many that run.
            batchers: that make their steps beside each other; they share the threads that compute.
            threads: that compute; default: as many as PyTorch uses now.
        """
        self.count = count
        self.claim = claim
        self.process = process
        self.is_draining = is_draining
        self.fits = fits
        self.threads = threads or torch.get_num_threads()
        lock = threading.Lock()
        self.batchers = [
            DynamicBatcher(RenderLock(self.threads, lock), partial(self.thread_share, number)) for number in range(batchers)
        ]
        self.running: list[Slot] = []
        self.found_none_at = 0.0  # when there was nothing to claim

    def run(self, first: Job) -> None:
        """Run a job and others beside it, until all have ended."""
        until = time.monotonic() + REFILL_S
        self.start(first)
        with ExitStack() as serving:
            for batcher in self.batchers:
                serving.enter_context(batcher.serving())
            while self.running:
                if time.monotonic() < until and not self.is_draining():
                    self.refill()
                self.running[0].thread.join(POLL_S)
                alive = [slot for slot in self.running if slot.thread.is_alive()]
                if len(alive) < len(self.running):
                    self.found_none_at = 0.0
                self.running = alive

    def refill(self) -> None:
        """Claim and start jobs while there are free slots and jobs for them."""
        while self.has_free_slot() and time.monotonic() - self.found_none_at >= CLAIM_EVERY_S:
            try:
                job = self.claim()
                if job is not None:
                    self.start(job)
            except Exception as error:  # those that run must not suffer
                logger.warning("no more jobs for now: %s", error)
                job = None
            if job is None:
                self.found_none_at = time.monotonic()

    def has_free_slot(self) -> bool:
        """Return whether one more job may run: at most twice as many as have stepped together, since their memory is known."""
        running, stepped = len(self.running), sum(batcher.most_served for batcher in self.batchers)
        return running < min(self.count, max(2, 2 * stepped)) and self.fits(running)

    def start(self, job: Job) -> None:
        """Start a job in a thread of its own, with the batcher that has the fewest."""
        batcher = min(self.batchers, key=lambda batcher: sum(slot.batcher is batcher for slot in self.running))
        thread = threading.Thread(target=self.run_slot, args=(job, batcher), name=f"job {job.id}", daemon=True)
        thread.start()
        self.running.append(Slot(thread, batcher))

    def run_slot(self, job: Job, batcher: DynamicBatcher) -> None:
        """Process one job: the thread's work."""
        torch.set_num_threads(self.threads)  # else as many as a batcher took last
        self.process(job, batcher)

    def thread_share(self, number: int) -> int:
        """Return the threads for a batcher's next step; the first of those with drags take what is over."""
        busy = [batcher.active > 0 for batcher in self.batchers]
        each, over = divmod(self.threads, max(1, sum(busy)))
        return max(1, each + (sum(busy[:number]) < over))


def choose_batcher_count(device: torch.device, threads: int) -> int:
    """Return how many batchers a device gains by: a GPU runs one step after another, a CPU needs a thread for each."""
    return min(CPU_BATCHERS, threads) if device.type == "cpu" else 1
