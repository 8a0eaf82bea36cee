"""Keys: wrong, many, huge."""

import itertools
import secrets

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import Attacker

PATHS = ("/v1/jobs", "/v1/usage", "/v1/models", "/v1/webhooks")


@attack()
def wrong_keys(attacker: Attacker) -> Strike:
    """A new wrong key each time, of an id that exists or not: each is looked up."""
    known, turn = attacker.key.split("_")[1], itertools.count()

    def strike() -> None:
        number = next(turn)
        key = f"dq_{known if number % 2 else secrets.token_hex(8)}_{secrets.token_urlsafe(32)}"
        attacker.exchange(attacker.request("GET", PATHS[number % len(PATHS)], key=key))

    return strike


@attack()
def wrong_keys_with_bodies(attacker: Attacker) -> Strike:
    body = b'{"model":"idle"}' * 1000
    keys = [f"dq_{secrets.token_hex(8)}_{secrets.token_urlsafe(32)}" for _ in range(200)]
    return attacker.flood(*(attacker.request("POST", "/v1/jobs", body, key=key) for key in keys))


@attack()
def odd_keys(attacker: Attacker) -> Strike:
    """Keys of 60 kB, of other alphabets, without parts, and other schemes."""
    keys = ("a" * 60_000, "dq_" + "0" * 60_000 + "_x", "dq__", "dq_\xff\xfe_\xe9", "_" * 1000, "dq_0123456789abcdef_", "\x7f")
    schemes = ("Basic YTpi", "Bearer", "Bearer  ", "bearer " * 500, "Digest " + "a=b," * 5000)
    requests = [attacker.request("GET", path, key=key) for path in PATHS for key in keys]
    return attacker.flood(*requests, *(attacker.request("GET", "/v1/jobs", headers={"Authorization": s}) for s in schemes))


@attack()
def many_keys(attacker: Attacker) -> Strike:
    """All keys of a tenant at their limits: what is counted for each key is not counted for the tenant."""
    return attacker.flood(*(r for path in PATHS for r in attacker.with_each_key("GET", path)))


@attack()
def requests_beyond_the_rate(attacker: Attacker) -> Strike:
    return attacker.flood(attacker.request("GET", "/v1/models"))
