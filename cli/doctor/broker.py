"""Checks of Redis or Valkey."""

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

from cli.doctor.findings import Finding, Findings, first_line, ok, problem, run_check, warning
from jobs.queue.broker import Broker
from jobs.settings import Settings

OLDEST_REDIS = 6


def check_broker(settings: Settings) -> Findings:
    """Yield the findings about the broker."""
    redis = Broker(settings.redis_url).redis
    try:
        info: dict[str, Any] = redis.info()
        yield check_version(info)
    except Exception as error:  # of the client's many, each is a finding
        yield problem("broker", first_line(error), "start Redis or Valkey, and see that DRAGQUEUE_REDIS_URL is right")
        return
    yield run_check("broker rights", check_writes, redis, advice="see its log: memory, disk, or a replica that takes no writes")
    yield check_eviction(info)
    yield check_persistence(info)
    redis.close()


def check_version(info: Mapping[str, Any]) -> Finding:
    """Report a server that is too old."""
    server = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info['redis_version']}"
    if int(info["redis_version"].split(".")[0]) < OLDEST_REDIS:
        return problem("broker", server, f"upgrade it to {OLDEST_REDIS} or newer")
    return ok("broker", server)


def check_writes(name: str, redis: Any) -> Finding:
    """Write a key that expires; an error that this raises is the finding."""
    redis.set(f"doctor:{uuid4()}", "", ex=1)
    return ok(name, "takes writes")


def check_eviction(info: Mapping[str, Any]) -> Finding:
    """Report a server that may drop messages when its memory is full."""
    policy = info.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return ok("broker memory", policy)
    return warning(
        "broker memory", f"maxmemory-policy {policy}", "set maxmemory-policy noeviction: others drop messages, which delays jobs"
    )


def check_persistence(info: Mapping[str, Any]) -> Finding:
    """Report whether messages survive a restart; a reconciler sends the lost ones again."""
    if info.get("aof_enabled"):
        return ok("broker persistence", "appendonly")
    hint = "nothing needed: the reconciler sends again what a restart forgets; appendonly yes spares the wait"
    return ok("broker persistence", "no appendonly file", hint)
