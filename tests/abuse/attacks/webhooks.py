"""Webhooks: slow receivers, floods of tests, addresses that are looked up."""

import socket
import threading
from uuid import uuid4

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import Attacker
from tests.abuse.attacks.rows import one_job, one_webhook
from tests.abuse.documents import JOB, as_json

MOST = 16  # that a tenant may have


def slow_receiver() -> str:
    """Take connections and never answer; return the address."""
    server = socket.create_server(("127.0.0.1", 0), backlog=1000)
    taken = []

    def take() -> None:
        while True:
            taken.append(server.accept())

    threading.Thread(target=take, daemon=True).start()
    return f"http://127.0.0.1:{server.getsockname()[1]}"


@attack("7", connections=8, at_least_s=15)
def sixteen_slow_receivers(attacker: Attacker) -> Strike:
    """Let every canceled job of a tenant be told to sixteen receivers that do not answer."""
    one_webhook(attacker)
    url = slow_receiver()
    for number in range(MOST - 1):
        attacker.call("POST", "/v1/webhooks", json={"url": f"{url}/{number}", "events": ["job.canceled"]})
    paths = [one_job(attacker) for _ in range(40)]
    return attacker.flood(*(attacker.request("POST", f"{path}/cancel") for path in paths))


@attack("7")
def tests_of_slow_receivers(attacker: Attacker) -> Strike:
    one_webhook(attacker)
    hook = attacker.call("POST", "/v1/webhooks", json={"url": slow_receiver(), "every_job": False})
    return attacker.flood(*attacker.with_each_key("POST", f"/v1/webhooks/{hook['id']}/test"))


@attack("7")
def tests_of_one_webhook(attacker: Attacker) -> Strike:
    path = one_webhook(attacker)
    return attacker.flood(
        *attacker.with_each_key("POST", f"{path}/test"), attacker.request("GET", f"{path}/deliveries?limit=200")
    )


@attack()
def webhooks_created_by_all(attacker: Attacker) -> Strike:
    body = as_json({"url": "http://127.0.0.1:9/x", "every_job": False})
    return attacker.flood(*attacker.with_each_key("POST", "/v1/webhooks", body))


@attack("12")
def webhooks_of_hosts_that_are_not_found(attacker: Attacker) -> Strike:
    """Each host is looked up, for seconds where its name server does not answer."""
    urls = [f"https://{uuid4().hex}.invalid/x" for _ in range(60)]
    return attacker.flood(*(attacker.request("POST", "/v1/webhooks", as_json({"url": url})) for url in urls))


@attack("12")
def webhooks_of_odd_addresses(attacker: Attacker) -> Strike:
    hosts = (
        "168.63.129.16",
        "169.254.169.254",
        "[::ffff:127.0.0.1]",
        "0x7f.1",
        "a" * 2000,
        "xn--" + "a" * 1900,
        "[" * 900,
        "%00",
        "1" * 1999,
    )
    bodies = [as_json({"url": f"https://{host}/"}) for host in hosts]
    return attacker.flood(*(attacker.request("POST", "/v1/webhooks", body) for body in bodies))


@attack()
def jobs_that_name_unknown_webhooks(attacker: Attacker) -> Strike:
    job = JOB | {"webhooks": [str(uuid4()) for _ in range(8)]}
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs", as_json(job)))
