"""Batches: large lines, many lines, lines that are none, slow and abandoned."""

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import Attacker
from tests.abuse.documents import BODY_BYTES, JOB, as_json, lines

JSONL = "application/jsonl"
LINE_BYTES = 129_000
LARGE_JOB = JOB | {
    "movable": {"shapes": [{"polygon": [[n / 7, m / 7] for n in range(100)]} for m in range(28)]},
    "metadata": {"text": "x" * 15_000},
}


def batch(attacker: Attacker, body: bytes) -> Strike:
    return attacker.flood(*attacker.with_each_key("POST", "/v1/batches", body, kind=JSONL))


def padded(job: dict[str, object], size: int = LINE_BYTES) -> bytes:
    """Return a job padded with blanks, which JSON allows."""
    return as_json(job).ljust(size)


@attack("8", connections=1, at_least_s=30)
def nine_hundred_lines_of_129_kb(attacker: Attacker) -> Strike:
    """116 MB, more than the other attacks send: the issue's own size."""
    return batch(attacker, lines(padded(LARGE_JOB), 900))


@attack("8", connections=4)
def two_hundred_lines_of_129_kb(attacker: Attacker) -> Strike:
    return batch(attacker, lines(padded(LARGE_JOB), 200))


@attack("8")
def batches_from_all_sides(attacker: Attacker) -> Strike:
    return batch(attacker, lines(JOB, 1000))


@attack()
def lines_that_are_no_jobs(attacker: Attacker) -> Strike:
    """50,000 lines, each with as many problems as are stored of one."""
    return batch(attacker, lines(b'{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":0,"k":1}', 50_000))


@attack()
def lines_without_end(attacker: Attacker) -> Strike:
    return batch(attacker, b'{"custom_id":"' + b"a" * BODY_BYTES)


@attack()
def lines_that_are_empty(attacker: Attacker) -> Strike:
    return batch(attacker, b"\n" * BODY_BYTES)


@attack()
def lines_that_are_deep(attacker: Attacker) -> Strike:
    return batch(attacker, (b"[" * 100_000 + b"\n") * 200)


@attack()
def lines_of_huge_numbers(attacker: Attacker) -> Strike:
    return batch(attacker, (b'{"custom_id":"a","job":' + b"9" * 100_000 + b"}\n") * 200)


@attack()
def batches_by_drops(attacker: Attacker) -> Strike:
    """Sixty batches at once, a line each now and then: none may keep the others' turn."""
    return attacker.trickle(attacker.request("POST", "/v1/batches", lines(JOB, 5000), kind=JSONL), part_bytes=200)


@attack()
def batches_that_break_off(attacker: Attacker) -> Strike:
    return attacker.aborted(*attacker.with_each_key("POST", "/v1/batches", lines(JOB, 5000), kind=JSONL), keep=0.9)


@attack()
def batches_whose_client_goes_away(attacker: Attacker) -> Strike:
    return attacker.aborted(*attacker.with_each_key("POST", "/v1/batches", lines(JOB, 5000), kind=JSONL), keep=1.0)


@attack()
def batches_without_a_key(attacker: Attacker) -> Strike:
    return attacker.flood(attacker.request("POST", "/v1/batches", lines(JOB, 50_000), kind=JSONL, key=None))


@attack()
def batches_with_one_idempotency_key(attacker: Attacker) -> Strike:
    headers = {"Idempotency-Key": attacker.key[:20]}
    return attacker.flood(*attacker.with_each_key("POST", "/v1/batches", lines(JOB, 2000), kind=JSONL, headers=headers))
