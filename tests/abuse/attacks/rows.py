"""Many requests for one row, and limits under concurrency."""

import itertools
from uuid import uuid4

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import Attacker
from tests.abuse.documents import JOB, as_json, largest_job, lines, picture

HOOK = {"url": "http://127.0.0.1:9/hook", "every_job": False}


def one_job(attacker: Attacker, **changes: object) -> str:
    """Submit a job that stays queued, and return its path."""
    job_id: str = attacker.call("POST", "/v1/jobs", json=JOB | changes)["id"]
    return f"/v1/jobs/{job_id}"


def one_webhook(attacker: Attacker) -> str:
    """Create a webhook, after deleting what earlier attacks have left, and return its path."""
    for old in attacker.call("GET", "/v1/webhooks")["webhooks"]:
        attacker.call("DELETE", f"/v1/webhooks/{old['id']}")
    return f"/v1/webhooks/{attacker.call('POST', '/v1/webhooks', json=HOOK)['id']}"


@attack("2", small=True)
def parallel_stops_of_one_job(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("POST", f"{one_job(attacker)}/stop"))


@attack("2")
def parallel_stops_with_one_key(attacker: Attacker) -> Strike:
    return attacker.flood(attacker.request("POST", f"{one_job(attacker)}/stop"))


@attack("2")
def parallel_puts_of_one_id(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("PUT", f"/v1/jobs/{uuid4()}", as_json(JOB)))


@attack("2")
def parallel_puts_of_one_large_job(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("PUT", f"/v1/jobs/{uuid4()}", largest_job()))


@attack("2")
def parallel_puts_of_different_jobs_with_one_id(attacker: Attacker) -> Strike:
    path = f"/v1/jobs/{uuid4()}"
    return attacker.flood(*(attacker.request("PUT", path, as_json(JOB | {"priority": n})) for n in range(50)))


@attack("2")
def parallel_changes_of_one_webhook(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("PATCH", one_webhook(attacker), b'{"enabled":true}'))


@attack("2", connections=100, small=True)
def a_hundred_cancels_of_one_job(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("POST", f"{one_job(attacker)}/cancel"))


@attack("2", connections=100)
def a_hundred_cancels_of_jobs(attacker: Attacker) -> Strike:
    paths = [f"{one_job(attacker)}/cancel" for _ in range(30)]
    return attacker.flood(*(attacker.request("POST", path) for path in paths))


@attack()
def rotations_of_one_webhook(attacker: Attacker) -> Strike:
    path = one_webhook(attacker)
    old = [attacker.request("DELETE", f"{path}/secrets/old"), attacker.request("GET", path)]
    return attacker.flood(*attacker.with_each_key("POST", f"{path}/rotate"), *old)


@attack()
def contention_for_one_idempotency_key(attacker: Attacker) -> Strike:
    """Sixty requests with one key: one is made, the others wait for it or are told to come back."""
    headers = {"Idempotency-Key": str(uuid4())}
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs", as_json(JOB), headers=headers))


@attack()
def contention_for_an_idempotency_key_of_large_jobs(attacker: Attacker) -> Strike:
    turn = itertools.count()
    bodies = [largest_job(), as_json(JOB)]

    def strike() -> None:
        number = next(turn) // 60  # a new key for each round of requests
        headers = {"Idempotency-Key": f"{attacker.key[:20]}-{number}"}
        attacker.exchange(attacker.request("POST", "/v1/jobs", bodies[number % 2], headers=headers))

    return strike


@attack()
def retries_of_one_job(attacker: Attacker) -> Strike:
    path = one_job(attacker)
    attacker.call("POST", f"{path}/cancel")
    return attacker.flood(*attacker.with_each_key("POST", f"{path}/retry"))


@attack()
def retries_of_one_large_job(attacker: Attacker) -> Strike:
    job_id = attacker.call("POST", "/v1/jobs", content=largest_job(), headers={"Content-Type": "application/json"})["id"]
    attacker.call("POST", f"/v1/jobs/{job_id}/cancel")
    return attacker.flood(*attacker.with_each_key("POST", f"/v1/jobs/{job_id}/retry"))


@attack()
def deletions_of_the_same_jobs(attacker: Attacker) -> Strike:
    paths = [one_job(attacker) for _ in range(20)]
    for path in paths:
        attacker.call("POST", f"{path}/cancel")
    return attacker.flood(*(attacker.request(method, path) for path in paths for method in ("DELETE", "GET", "DELETE")))


@attack()
def cancels_of_one_large_batch(attacker: Attacker) -> Strike:
    """Cancel a batch of 5,000 jobs from all sides while others count it."""
    headers = {"Content-Type": "application/jsonl"}
    batch = attacker.call("POST", "/v1/batches", content=lines(JOB, 5000), headers=headers)
    path = f"/v1/batches/{batch['id']}"
    return attacker.flood(*attacker.with_each_key("POST", f"{path}/cancel"), attacker.request("GET", path))


@attack()
def one_upload_from_all_sides(attacker: Attacker) -> Strike:
    """The same picture again and again, used by jobs and deleted meanwhile."""
    photo = picture((64, 64), "RGB")
    sha256 = attacker.call("POST", "/v1/uploads", content=photo)["sha256"]
    job = as_json(JOB | {"source": {"upload": sha256}, "points": []})
    return attacker.flood(
        attacker.request("POST", "/v1/uploads", photo, kind="image/png"), attacker.request("POST", "/v1/jobs", job),
        attacker.request("DELETE", f"/v1/uploads/{sha256}"), attacker.request("POST", "/v1/jobs:validate", job),
        attacker.request("GET", f"/v1/uploads/{sha256}"),
    )  # fmt: skip


@attack("12", connections=120)
def submits_beyond_the_quota(attacker: Attacker) -> Strike:
    """120 submissions at once; with the quota in test_quotas the count is exact too."""
    return attacker.flood(attacker.request("POST", "/v1/jobs", as_json(JOB)))


@attack()
def ids_that_are_none(attacker: Attacker) -> Strike:
    """Odd ids in paths: long, encoded, with NULs, other tenants'."""
    ids = ("x", "%00", "..%2f..%2fetc", "0" * 10_000, "%ff%fe", str(uuid4()), str(uuid4()).upper(), "{" + str(uuid4()) + "}")
    places = (
        "/v1/jobs/%s",
        "/v1/jobs/%s/stop",
        "/v1/jobs/%s/artifacts/%s",
        "/v1/webhooks/%s/test",
        "/v1/uploads/%s",
        "/v1/batches/%s",
    )
    paths = [place.replace("%s", wanted) for place in places for wanted in ids]
    return attacker.flood(*(attacker.request(method, path) for path in paths for method in ("GET", "POST", "DELETE")))
