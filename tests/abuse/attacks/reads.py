"""Reading: large lists, waits, streams, archives, documents; also by readers that are slow or go away."""

import itertools
import time
from uuid import uuid4

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import JSON, Attacker, Request
from tests.abuse.attacks.rows import one_job
from tests.abuse.documents import as_json, largest_job, lines

LARGE_JOBS = 200
READERS = 20  # of an archive, before it is deleted


def stock_large_jobs(attacker: Attacker) -> None:
    """See to it that the newest jobs of the tenant are the largest that there may be; they stay for the next attack."""
    newest = attacker.call("GET", "/v1/jobs?limit=1")["jobs"]
    if newest and newest[0]["model"] == "large":
        return
    body = largest_job("large", left=40_000.0)  # nothing to draw: they are many
    for _ in range(LARGE_JOBS):
        attacker.call("POST", "/v1/jobs", content=body, headers={"Content-Type": JSON})


def finished_job(attacker: Attacker) -> str:
    """Return the path of an ended job with some megabytes of frames."""
    found = attacker.call("GET", "/v1/jobs?state=succeeded&model=slow&limit=1")["jobs"]
    if found:
        return f"/v1/jobs/{found[0]['id']}"
    job = {
        "model": "slow",
        "source": {"seed": 3},
        "points": [{"handle": [100, 100], "target": [180, 120]}],
        "drag": {"max_iterations": 24},
        "output": {"frame_format": "png", "animation": []},
    }
    path = f"/v1/jobs/{attacker.call('POST', '/v1/jobs', json=job)['id']}"
    deadline = time.monotonic() + 60
    while attacker.call("GET", path, headers={"Prefer": "wait=10"})["state"] not in ("succeeded", "failed"):
        assert time.monotonic() < deadline
    return path


def lists(attacker: Attacker) -> list[Request]:
    paths = ("/v1/jobs?limit=200", "/v1/jobs?limit=200&expand=spec", "/v1/jobs?limit=200&state=queued")
    return [request for path in paths for request in attacker.with_each_key("GET", path)]


@attack("4", connections=12, at_least_s=6)
def lists_of_large_jobs(attacker: Attacker) -> Strike:
    """Ask twelve times at once for pages of 200 jobs of 635 kB."""
    stock_large_jobs(attacker)
    return attacker.flood(*lists(attacker))


@attack("4")
def lists_of_large_jobs_by_sixty(attacker: Attacker) -> Strike:
    stock_large_jobs(attacker)
    return attacker.flood(*lists(attacker))


@attack("4", connections=12)
def lists_of_large_jobs_that_are_not_read(attacker: Attacker) -> Strike:
    stock_large_jobs(attacker)
    return attacker.slow_reader(*lists(attacker))


@attack("4")
def lists_of_large_jobs_that_are_broken_off(attacker: Attacker) -> Strike:
    stock_large_jobs(attacker)
    return attacker.aborted(*lists(attacker), read_bytes=1000)


@attack()
def one_large_job_read_by_all(attacker: Attacker) -> Strike:
    """Each answer is made and hashed for its ETag."""
    job_id = attacker.call("POST", "/v1/jobs", content=largest_job(), headers={"Content-Type": JSON})["id"]
    return attacker.flood(*attacker.with_each_key("GET", f"/v1/jobs/{job_id}"))


@attack()
def streams_of_one_large_job(attacker: Attacker) -> Strike:
    job_id = attacker.call("POST", "/v1/jobs", content=largest_job(), headers={"Content-Type": JSON})["id"]
    return attacker.aborted(*attacker.with_each_key("GET", f"/v1/jobs/{job_id}/events"), read_bytes=10_000)


@attack()
def lists_from_all_sides(attacker: Attacker) -> Strike:
    """Lists of everything a tenant has, with every filter."""
    paths = (
        "/v1/jobs?limit=200", f"/v1/jobs?batch={uuid4()}", "/v1/jobs?state=succeeded&model=tiny", "/v1/audit?limit=200",
        "/v1/usage", "/v1/queue", "/v1/batches?limit=200", "/v1/webhooks", "/v1/models",
    )  # fmt: skip
    return attacker.flood(*(attacker.request("GET", path) for path in paths))


@attack()
def cursors_and_limits_that_are_none(attacker: Attacker) -> Strike:
    values = ("0", "-1", str(2**63), str(2**63 - 1), "9" * 5000, "1e9", "%00", "x" * 5000, "NaN", "1&cursor=2&cursor=3")
    paths = (
        "/v1/jobs?cursor=",
        "/v1/jobs?limit=",
        "/v1/audit?cursor=",
        "/v1/batches?cursor=",
        "/v1/jobs?batch=",
        "/v1/jobs?model=",
    )
    return attacker.flood(*(attacker.request("GET", path + value) for path in paths for value in values))


@attack()
def ten_thousand_parameters(attacker: Attacker) -> Strike:
    query = "&".join(f"p{n}=1" for n in range(6000))
    return attacker.flood(*(attacker.request("GET", f"{path}?{query}") for path in ("/v1/jobs", "/healthz", "/v1/audit")))


@attack()
def expansions_repeated(attacker: Attacker) -> Strike:
    """Ask for the same expansion thousands of times; and for thousands that do not exist."""
    path = one_job(attacker)
    known, unknown = "&".join(["expand=artifacts"] * 3000), "&".join(["expand=x"] * 5000)
    return attacker.flood(*(attacker.request("GET", f"{path}?{query}") for query in (known, unknown)))


@attack()
def thousands_of_etags(attacker: Attacker) -> Strike:
    path = one_job(attacker)
    values = [",".join(['W/"x"'] * 9000), "," * 50_000, '"' * 400]
    return attacker.flood(*(attacker.request("GET", path, headers={"If-None-Match": value}) for value in values))


@attack(connections=200)
def long_polls(attacker: Attacker) -> Strike:
    """200 waits for a change that does not come, begun anew by clients that do not wait."""
    path = one_job(attacker)
    return attacker.flood(*(attacker.request("GET", path, headers={"Prefer": f"wait={s}"}) for s in (1, 60, "9" * 30, -1)))


@attack(connections=200)
def long_polls_that_are_broken_off(attacker: Attacker) -> Strike:
    path = one_job(attacker)
    return attacker.aborted(*attacker.with_each_key("GET", path, headers={"Prefer": "wait=60"}))


@attack(connections=200)
def streams_at_their_limit(attacker: Attacker) -> Strike:
    """Hold as many streams as a key may have."""
    path = one_job(attacker)
    return attacker.held(attacker.request("GET", f"{path}/events").head)


@attack(connections=400)
def streams_beyond_the_limit_with_many_keys(attacker: Attacker) -> Strike:
    path = one_job(attacker)
    return attacker.slow_reader(*attacker.with_each_key("GET", f"{path}/events"))


@attack()
def streams_opened_and_broken_off(attacker: Attacker) -> Strike:
    path = one_job(attacker)
    requests = attacker.with_each_key("GET", f"{path}/events", headers={"Last-Event-ID": "0"})
    return attacker.aborted(*requests, read_bytes=100)


@attack()
def streams_of_a_job_that_changes(attacker: Attacker) -> Strike:
    """Every change of a job wakes 60 streams, while it is stopped and canceled and its siblings are made."""
    paths = [one_job(attacker) for _ in range(10)]
    streams = [attacker.request("GET", f"{path}/events") for path in paths]
    changes = [attacker.request("POST", f"{path}/{verb}") for path in paths for verb in ("stop", "cancel")]
    return attacker.flood(*streams, *changes)


@attack()
def archives_that_are_broken_off(attacker: Attacker) -> Strike:
    return attacker.aborted(*attacker.with_each_key("GET", f"{finished_job(attacker)}/archive"), read_bytes=5000)


@attack()
def archives_read_slowly(attacker: Attacker) -> Strike:
    return attacker.slow_reader(*attacker.with_each_key("GET", f"{finished_job(attacker)}/archive"))


@attack()
def archives_from_all_sides(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("GET", f"{finished_job(attacker)}/archive"))


@attack("12")
def deletion_during_an_archive(attacker: Attacker) -> Strike:
    """Delete a job in the middle of others reading its archive."""
    path = finished_job(attacker)
    archive = attacker.with_each_key("GET", f"{path}/archive")
    deleter = attacker.request("DELETE", path)
    turn = itertools.count()

    def strike() -> None:
        number = next(turn)
        attacker.exchange(deleter if number == READERS else archive[number % len(archive)])

    return strike


@attack()
def listings_of_frames_and_artifacts(attacker: Attacker) -> Strike:
    path = finished_job(attacker)
    paths = (
        "frames?limit=200",
        "frames?cursor=" + "z" * 200,
        "artifacts",
        "artifacts/result.png",
        "artifacts/..%2f..%2fx",
        "artifacts/a%00b",
    )
    return attacker.flood(*(attacker.request("GET", f"{path}/{name}") for name in paths))


@attack()
def results_of_a_batch_read_slowly(attacker: Attacker) -> Strike:
    """A batch of 20,000 lines that are no jobs: its errors are megabytes, read by drops."""
    headers = {"Content-Type": "application/jsonl"}
    batch = attacker.call("POST", "/v1/batches", content=lines(b'{"x":1}', 20_000), headers=headers)
    return attacker.slow_reader(*attacker.with_each_key("GET", f"/v1/batches/{batch['id']}/errors"))


@attack()
def results_of_a_batch_from_all_sides(attacker: Attacker) -> Strike:
    headers = {"Content-Type": "application/jsonl"}
    batch = attacker.call("POST", "/v1/batches", content=lines(b'{"x":1}', 20_000), headers=headers)
    return attacker.flood(*attacker.with_each_key("GET", f"/v1/batches/{batch['id']}/errors"))


@attack("12")
def the_contract_from_all_sides(attacker: Attacker) -> Strike:
    """Ask for the OpenAPI document and its pages, which need no key."""
    paths = ("/openapi.json", "/docs", "/redoc", "/docs/oauth2-redirect", "/openapi.json?x=1")
    return attacker.flood(*(attacker.request("GET", path, key=None) for path in paths))


@attack()
def validations_from_all_sides(attacker: Attacker) -> Strike:
    job = {"model": "tiny", "source": {"seed": 3}, "points": [{"handle": [10, 10], "target": [20, 12]}]}
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs:validate", as_json(job)))


@attack()
def links_to_artifacts_in_parts(attacker: Attacker) -> Strike:
    """Range and other conditional headers, thousands of them."""
    path = finished_job(attacker)
    ranges = ("bytes=0-", "bytes=" + ",".join(["0-1"] * 5000), "bytes=-1", "lines=1-2", "bytes=" + "9" * 4000 + "-")
    places = ("archive", "artifacts/result.png", "events")
    requests = [attacker.request("GET", f"{path}/{place}", headers={"Range": value}) for value in ranges for place in places]
    return attacker.flood(*requests)
