"""Restarts of what ends by itself, while `dragqueue up` runs."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NoReturn

from embedded.processes import Child
from embedded.stack import Stack
from jobs.backoff import Backoff

MAX_RESTARTS = 3  # of one process within RESTART_WINDOW_S
RESTART_WINDOW_S = 60.0
PAUSES = Backoff(first_s=0.5, limit_s=10.0)
POLL_S = 0.2


@dataclass
class Restarts:
    """The restarts of one process."""

    planned_at: list[float] = field(default_factory=list)  # those of the last RESTART_WINDOW_S
    due_at: float | None = None  # of the next one, once the process has ended


class Supervisor:
    """The supervisor of a stack's processes, servers included."""

    def __init__(self, stack: Stack, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Do nothing yet.

        Args:
            say: is told in one line of each process that has ended.
            clock: returns the seconds of a clock that never steps back.
        """
        self.stack = stack
        self.say = say
        self.clock = clock
        self.restarts: dict[str, Restarts] = {}  # by the names of the processes

    def run(self) -> NoReturn:
        """Look after the processes for ever; from the main thread, with which they end. Raises ServerFailed as `look` does."""
        while True:
            self.look()
            time.sleep(POLL_S)

    def look(self) -> None:
        """Start again what has ended, each after its pause.

        Raises:
            ServerFailed: a process has ended too often, or cannot be started.
        """
        for child in list(self.stack.children):
            if child.process.poll() is None:
                continue
            restarts = self.restarts.setdefault(child.name, Restarts())
            if restarts.due_at is None:
                restarts.due_at = self.plan(child, restarts)
            if self.clock() >= restarts.due_at:
                restarts.due_at = None
                self.stack.restart(child.name)

    def plan(self, child: Child, restarts: Restarts) -> float:
        """Return when an ended process is started again. Raises ServerFailed when it ends too often."""
        now = self.clock()
        restarts.planned_at = [at for at in restarts.planned_at if now - at < RESTART_WINDOW_S]
        if len(restarts.planned_at) >= MAX_RESTARTS:
            child.check()
        pause_s = PAUSES.delay_s(len(restarts.planned_at))
        restarts.planned_at.append(now)
        code = child.process.returncode
        self.say(f"{child.name} ended with exit code {code} and is started again in {pause_s:.1f} s; its log is {child.log}")
        return now + pause_s
