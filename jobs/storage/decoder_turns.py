"""Turns at the decoders: how many children run at once, and how they are shared between tenants.

A tenant never holds all of them, also while nobody else waits: a child that runs cannot be taken away again.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition

from jobs.cancellation import check_canceled
from jobs.errors import DecoderBusy

MAX_WAITING = 8  # files of one tenant; each holds a thread of the API
POLL_S = 0.2  # between two looks at whether the client still waits
MAX_REMEMBERED = 10_000  # tenants


@dataclass(eq=False)
class Ticket:
    """A file that waits for its turn."""

    tenant: str
    number: int


class DecoderTurns:
    """The children that may run at once, of one process."""

    def __init__(self, capacity: int) -> None:
        self.changed = Condition()
        self.capacity = capacity
        self.held: Counter[str] = Counter()  # children by tenant
        self.waiting: list[Ticket] = []  # from the oldest on
        self.served: dict[str, int] = {}  # the number of the last ticket that had a turn, by tenant
        self.numbers = 0

    def resize(self, capacity: int) -> None:
        """Change how many children may run at once."""
        with self.changed:
            self.capacity = capacity
            self.changed.notify_all()

    @property
    def share(self) -> int:
        """Return how many children one tenant may hold: a quarter of them, at least one, is kept for others."""
        return max(1, self.capacity - max(1, self.capacity // 4))

    @contextmanager
    def turn(self, tenant: str, wait_s: float) -> Iterator[None]:
        """Wait for a turn and hold it. Raises DecoderBusy, Canceled."""
        self.take(tenant, wait_s)
        try:
            yield
        finally:
            with self.changed:
                self.held[tenant] -= 1
                self.held += Counter()  # forgets the tenants that hold none
                self.changed.notify_all()

    def take(self, tenant: str, wait_s: float) -> None:
        """Wait until the tenant may hold one child more. Raises DecoderBusy, Canceled."""
        deadline = time.monotonic() + wait_s
        with self.changed:
            if sum(ticket.tenant == tenant for ticket in self.waiting) >= MAX_WAITING:
                raise DecoderBusy(f"{MAX_WAITING} of your files wait to be read already: send fewer at a time")
            self.numbers += 1
            ticket = Ticket(tenant, self.numbers)
            self.waiting.append(ticket)
            try:
                while self.next_ticket() is not ticket:
                    left_s = deadline - time.monotonic()
                    if left_s <= 0:
                        raise DecoderBusy(f"more pictures are being read than this server can: no turn within {wait_s:g} s")
                    self.changed.wait(min(left_s, POLL_S))
                    check_canceled()
                self.held[tenant] += 1
                self.remember_turn(ticket)
            finally:
                self.waiting.remove(ticket)
                self.changed.notify_all()

    def next_ticket(self) -> Ticket | None:
        """Return whose turn it is: of the tenants below their share, the one that holds least and was served longest ago."""
        if self.held.total() >= self.capacity:
            return None
        able = (ticket for ticket in self.waiting if self.held[ticket.tenant] < self.share)
        return min(able, key=lambda t: (self.held[t.tenant], self.served.get(t.tenant, 0), t.number), default=None)

    def remember_turn(self, ticket: Ticket) -> None:
        if len(self.served) >= MAX_REMEMBERED:
            self.served.clear()
        self.served[ticket.tenant] = ticket.number
