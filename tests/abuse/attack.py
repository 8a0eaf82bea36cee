"""What an attack is, and the list of all of them.

An attack is a function that prepares what it needs (jobs, uploads, bytes to send) and returns a strike: what each of its
connections then does again and again until the time is over. Its name says what happens, its docstring how.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Strike = Callable[[], Any]
SMALL_CONNECTIONS = 60  # more than the API has threads
BEYOND = "beyond"  # the issue's own list


@dataclass(frozen=True)
class Attack:
    """One way to disturb the service."""

    name: str
    line: str  # of issue 19 that it reproduces, or BEYOND
    prepare: Callable[[Any], Strike]  # called with the Attacker
    connections: int
    small: bool  # whether `make test` runs it too, with fewer connections
    at_least_s: float  # of the full set: some harm takes longer than an attack's usual time
    stops: str | None  # the server that stands still meanwhile
    victim: tuple[str, ...] | None  # the kinds of requests that the victim makes; None: all

    def in_small(self) -> "Attack":
        """Return the attack for a moment, with a fifth of its connections where there are hundreds."""
        return replace(self, connections=min(self.connections, max(SMALL_CONNECTIONS, self.connections // 5)), at_least_s=0.0)


ATTACKS: dict[str, Attack] = {}


def attack(
    line: str = BEYOND, *, connections: int = 60, small: bool = False, at_least_s: float = 0.0,
    stops: str | None = None, victim: tuple[str, ...] | None = None,
) -> Callable[[Callable[[Any], Strike]], Callable[[Any], Strike]]:  # fmt: skip
    """Add a function to the list of attacks."""

    def add(prepare: Callable[[Any], Strike]) -> Callable[[Any], Strike]:
        name = prepare.__name__.replace("_", " ").strip()
        assert name not in ATTACKS
        ATTACKS[name] = Attack(name, line, prepare, connections, small, at_least_s, stops, victim)
        return prepare

    return add
