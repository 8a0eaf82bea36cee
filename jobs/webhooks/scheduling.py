"""Which webhooks are sent their next deliveries: capacity is shared between tenants, then between the webhooks of each.

An attempt occupies its place until the receiver answers, so a free place is worth most while others are held for long:

- Lanes. Webhooks that answer slowly or fail, and those that nobody knows yet, have a share of the places each. An attempt that
  lasts is counted as slow from then on, so that no receiver holds a place of the other lanes for longer than SLOW_S.
- Of every share, and in all, a tenant takes no more places than it leaves free. Something is left for the next tenant.
- The tenant with the fewest attempts in flight is next; among equals, the one whose turn was longest ago, and before anybody had
  a turn, the one that has the least to send. A long backlog gains nothing. The webhooks of a tenant take turns in the same way.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from heapq import heapify, heappop, heappush
from uuid import UUID

SLOW_S = 1.0  # an attempt that takes longer is slow; so is a webhook whose attempts do so on average


class Lane(StrEnum):
    """What is known of a webhook, and so which places it may take."""

    QUICK = "quick"
    NEW = "new"  # no attempt has ended yet
    SLOW = "slow"  # or failing


ALL, UNPROVEN = "all", "unproven"  # the second: what was not quick when it began
SHARES = {ALL: 1.0, Lane.QUICK: 1.0, UNPROVEN: 0.75, Lane.SLOW: 0.5, Lane.NEW: 0.25}  # of the places
MAX_PER_WEBHOOK = {Lane.QUICK: 2, Lane.NEW: 2, Lane.SLOW: 1}  # attempts at once


@dataclass(frozen=True, kw_only=True)
class WaitingWebhook:
    """A webhook with deliveries that are due."""

    id: UUID
    tenant: str
    due: int  # deliveries; more than may be sent at once are not counted
    since: datetime  # when the first of them was due
    answer_s: float | None  # how long its attempts take on average; None: nobody knows
    failing: bool  # whether its last attempt failed


@dataclass(frozen=True, kw_only=True)
class Place:
    """What an attempt occupies."""

    webhook: UUID
    tenant: str
    lane: Lane  # of the webhook when the attempt began
    lasts: bool = False  # whether it has taken longer than SLOW_S

    @property
    def slow(self) -> bool:
        """Whether the attempt counts as slow by now."""
        return self.lasts or self.lane is Lane.SLOW

    @property
    def shares(self) -> list[str]:
        """The shares that the place is taken from."""
        return [ALL, Lane.SLOW if self.slow else self.lane] + ([] if self.lane is Lane.QUICK else [UNPROVEN])


class Occupancy:
    """The places that are taken."""

    def __init__(self, capacity: int, taken: Collection[Place], waiting: Collection[WaitingWebhook]) -> None:
        self.capacity = capacity
        self.counts: Counter[object] = Counter()
        for place in taken:
            self.add(place)
        self.slow_webhooks = {place.webhook for place in taken if place.slow} | {
            webhook.id for webhook in waiting if webhook.failing or (webhook.answer_s or 0.0) > SLOW_S
        }
        self.slow_tenants = {place.tenant for place in taken if place.slow} | {
            webhook.tenant for webhook in waiting if webhook.id in self.slow_webhooks
        }

    @property
    def free(self) -> int:
        """How many places are free."""
        return self.capacity - self.counts[ALL]

    def add(self, place: Place) -> None:
        """Take a place."""
        self.counts.update((place.webhook, place.tenant))
        for share in place.shares:
            self.counts.update((share, (place.tenant, share)))

    def fits(self, place: Place) -> bool:
        """Return whether the tenant leaves as much free as it has, of every share."""
        return self.counts[place.webhook] < MAX_PER_WEBHOOK[place.lane] and all(
            self.counts[place.tenant, share] < int(self.capacity * SHARES[share]) - self.counts[share] for share in place.shares
        )

    def find_lane(self, webhook: WaitingWebhook) -> Lane:
        """Return a webhook's lane. A new one beside slow ones of its tenant is no better than they are."""
        if webhook.id in self.slow_webhooks:
            return Lane.SLOW
        if webhook.answer_s is not None:
            return Lane.QUICK
        return Lane.SLOW if webhook.tenant in self.slow_tenants else Lane.NEW


class DeliveryScheduler:
    """The scheduler of one deliverer. It remembers whose turn was when."""

    def __init__(self, capacity: int) -> None:
        """Begin with nobody's turn.

        Args:
            capacity: how many attempts may be in flight.
        """
        self.capacity = capacity
        self.turns = 0
        self.last_turn: dict[str | UUID, int] = {}  # of tenants and webhooks that have something due

    def choose(self, waiting: Sequence[WaitingWebhook], taken: Collection[Place]) -> list[Place]:
        """Return the places that attempts may take now, in the order of their turns."""
        occupancy = Occupancy(self.capacity, taken, waiting)
        self.last_turn = {key: self.last_turn[key] for key in find_keys(waiting) & self.last_turn.keys()}
        queues = self.sort_places(waiting, occupancy)
        order = [
            (occupancy.counts[tenant], self.last_turn.get(tenant, 0), len(places), tenant) for tenant, places in queues.items()
        ]
        heapify(order)
        chosen = []
        while order and occupancy.free > 0:
            *_, tenant = heappop(order)
            place = next(filter(occupancy.fits, queues[tenant]), None)
            if place is None:
                continue
            queues[tenant].remove(place)
            occupancy.add(place)
            chosen.append(place)
            self.turns += 1
            self.last_turn[tenant] = self.last_turn[place.webhook] = self.turns
            heappush(order, (occupancy.counts[tenant], self.turns, 0, tenant))
        return chosen

    def sort_places(self, waiting: Sequence[WaitingWebhook], occupancy: Occupancy) -> dict[str, list[Place]]:
        """Return the places that each tenant would take: a webhook with fewer attempts first, then the one that waits longest."""
        wanted = [
            (occupancy.counts[webhook.id] + nth, self.last_turn.get(webhook.id, 0), webhook.since, webhook)
            for webhook in waiting
            for nth in range(webhook.due)
        ]
        queues: dict[str, list[Place]] = {}
        for *_, webhook in sorted(wanted, key=lambda place: place[:3]):
            place = Place(webhook=webhook.id, tenant=webhook.tenant, lane=occupancy.find_lane(webhook))
            queues.setdefault(webhook.tenant, []).append(place)
        return queues


def find_keys(waiting: Sequence[WaitingWebhook]) -> set[str | UUID]:
    """Return the webhooks that wait, and their tenants."""
    return {key for webhook in waiting for key in (webhook.id, webhook.tenant)}


def smooth_answer_s(before_s: float | None, took_s: float) -> float:
    """Return how long a webhook's attempts take on average, the latest ones counting most."""
    return took_s if before_s is None else (before_s + took_s) / 2
