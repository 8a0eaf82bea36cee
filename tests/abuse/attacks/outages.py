"""Requests while a server stands still: those who need it must not keep those who do not from being served."""

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import Attacker
from tests.abuse.attacks.reads import finished_job
from tests.abuse.attacks.rows import one_job
from tests.abuse.documents import JOB, as_json, picture

WITHOUT_STORE = ("healthz", "poll", "list", "submit", "stream")
STORE, BROKER, DATABASE = "rclone S3", "Valkey", "PostgreSQL"


@attack("11", stops=STORE, victim=WITHOUT_STORE, small=True)
def readiness_while_the_store_stands_still(attacker: Attacker) -> Strike:
    return attacker.flood(attacker.request("GET", "/readyz", key=None))


@attack("11", stops=STORE, victim=WITHOUT_STORE)
def uploads_while_the_store_stands_still(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("POST", "/v1/uploads", picture((40, 40)), kind="image/png"))


@attack("11", stops=STORE, victim=WITHOUT_STORE)
def archives_while_the_store_stands_still(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("GET", f"{finished_job(attacker)}/archive"))


@attack(stops=STORE, victim=WITHOUT_STORE)
def masks_and_deletions_while_the_store_stands_still(attacker: Attacker) -> Strike:
    photo = attacker.call("POST", "/v1/uploads", content=picture((64, 64)))["sha256"]
    mask = attacker.call("POST", "/v1/uploads?kind=mask", content=picture((64, 64), "1"))["sha256"]
    job = as_json(JOB | {"source": {"upload": photo}, "points": [], "movable": {"upload": mask}})
    jobs = [attacker.request("POST", path, job) for path in ("/v1/jobs", "/v1/jobs:validate")]
    return attacker.flood(*jobs, attacker.request("DELETE", f"/v1/uploads/{mask}"))


@attack(stops=BROKER)
def submissions_while_the_broker_stands_still(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs", as_json(JOB)))


@attack(stops=BROKER)
def readiness_while_the_broker_stands_still(attacker: Attacker) -> Strike:
    return attacker.flood(attacker.request("GET", "/readyz", key=None))


@attack("2", stops=DATABASE, victim=("healthz",))
def polls_while_the_database_stands_still(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("GET", one_job(attacker)))


@attack("2", stops=DATABASE, victim=("healthz",))
def submissions_while_the_database_stands_still(attacker: Attacker) -> Strike:
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs", as_json(JOB)))


@attack("11", stops=DATABASE, victim=("healthz",))
def readiness_while_the_database_stands_still(attacker: Attacker) -> Strike:
    return attacker.flood(attacker.request("GET", "/readyz", key=None))
