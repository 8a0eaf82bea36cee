"""dragqueue doctor with real servers."""

import json
import time
from datetime import timedelta

import pytest
from sqlalchemy import make_url
from typer.testing import CliRunner

from cli.doctor.database import check_database_clock
from cli.doctor.examination import examine
from cli.doctor.findings import Verdict
from cli.doctor.host import check_chosen_device
from cli.doctor.store import check_store_clock
from cli.main import app
from jobs.database import make_engine
from jobs.models.manifest import ModelManifest
from jobs.queue.claims import Claimer, claim
from jobs.queue.workers import WorkerStatus, report_status
from jobs.storage.objects import Storage
from tests.certificates import write_certificate
from tests.generators import tiny_generator
from tests.manifests import TINY, add_model
from tests.services.conftest import execute
from tests.services.jobs import add_job

OK, WARNING, PROBLEM = Verdict
SERVERS = {"PostgreSQL": "DATABASE_URL", "broker": "REDIS_URL", "store": "S3_ENDPOINT"}


@pytest.fixture
def healthy(stack, queue, tmp_path) -> dict[str, str]:
    """An environment with nothing wrong: a manifest of one good model, no job."""
    (tmp_path / "manifest.toml").write_text("[models]\n")
    ModelManifest(tmp_path, {}).add(add_model(tmp_path, "tiny", tiny_generator()))
    return stack.environment | {"DRAGQUEUE_CHECKPOINTS": str(tmp_path)}


def findings(environment) -> dict[str, tuple[Verdict, str, str]]:
    return {finding.name: (finding.verdict, finding.found, finding.advice) for finding in examine(environment)}


def wrong(environment) -> dict[str, Verdict]:
    return {name: finding[0] for name, finding in findings(environment).items() if finding[0] != OK}


def doctor(environment, *arguments):
    return CliRunner().invoke(app, ["doctor", *arguments], env=environment | {"COLUMNS": "200"})


def test_where_all_is_well_everything_is_ok_and_nothing_is_left_behind(healthy, settings):
    run = doctor(healthy, "--json")
    assert (run.exit_code, {found["verdict"] for found in json.loads(run.stdout)}) == (0, {"ok"})
    names = {found["name"] for found in json.loads(run.stdout)}
    assert names >= {"PostgreSQL", "migrations", "database clock", "database rights", "workers", "reconciler", "disk", "device"}
    assert names >= {
        "broker",
        "broker rights",
        "broker memory",
        "store",
        "store rights",
        "store links",
        "store clock",
        "model tiny",
    }
    assert list(Storage.from_settings(settings).keys("doctor/")) == []


def test_what_is_wrong_is_told_in_a_table_with_what_to_do_and_fails(healthy, empty_database):
    run = doctor(healthy | {"DRAGQUEUE_DATABASE_URL": empty_database})
    assert run.exit_code == 1
    assert all(part in run.stdout for part in ("migrations", "problem", "run dragqueue migrate"))


def test_wrong_settings_are_a_finding_too(healthy):
    run = doctor(healthy | {"DRAGQUEUE_LEASE_S": "soon"}, "--json")
    assert (run.exit_code, json.loads(run.stdout)[0]["name"]) == (1, "settings")
    assert "DRAGQUEUE_LEASE_S: Input should be a valid number" in json.loads(run.stdout)[0]["found"]


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_that_is_away_is_named_and_the_others_are_checked(healthy, name):
    away = {
        "PostgreSQL": "postgresql://app@/postgres?host=/nowhere",
        "broker": "redis+socket:///nowhere",
        "store": "http://127.0.0.1:9",
    }
    found = wrong(healthy | {f"DRAGQUEUE_{SERVERS[name]}": away[name]})
    assert found == {name: PROBLEM} | ({"store clock": PROBLEM} if name == "store" else {})


def test_a_database_of_a_newer_release_is_told_apart(healthy, settings):
    execute(settings.database_url, "UPDATE alembic_version SET version_num = '9999'")
    assert findings(healthy)["migrations"] == (
        PROBLEM, "at 9999, which this release does not know", "install the release that migrated the database"
    )  # fmt: skip


def test_a_role_that_may_not_write_and_a_standby_are_problems(healthy, settings):
    role = f"reader_{make_url(settings.database_url).database}"
    execute(settings.database_url, f"CREATE ROLE {role} LOGIN; GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    reader = settings.database_url.replace("app@", f"{role}@")
    verdict, found, advice = findings(healthy | {"DRAGQUEUE_DATABASE_URL": reader})["database rights"]
    assert (verdict, advice) == (PROBLEM, "GRANT it what it lacks")
    assert "INSERT on jobs, UPDATE on jobs, DELETE on jobs" in found
    execute(settings.database_url, f"DROP OWNED BY {role}; DROP ROLE {role}")
    name = make_url(settings.database_url).database
    execute(settings.database_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert wrong(healthy) == {"database rights": PROBLEM}


def test_a_bucket_that_is_missing_is_made_by_migrate(healthy):
    verdict, found, advice = findings(healthy | {"DRAGQUEUE_S3_BUCKET": "nobodys"})["store"]
    assert (verdict, found, advice) == (PROBLEM, "there is no bucket nobodys", "run dragqueue migrate, which makes it")


def test_a_wrong_key_and_links_that_lead_nowhere_are_problems(healthy):
    assert wrong(healthy | {"DRAGQUEUE_S3_SECRET_KEY": "another-key"}) == {"store": PROBLEM}
    assert wrong(healthy | {"DRAGQUEUE_S3_PUBLIC_ENDPOINT": "http://127.0.0.1:9"}) == {"store links": PROBLEM}


@pytest.mark.parametrize(
    ("skew_s", "expected"),
    [
        (20, (WARNING, OK)),
        (300, (WARNING, WARNING)),
        (1000, (WARNING, PROBLEM)),
    ],
)
def test_a_host_whose_clock_is_wrong_is_told_by_how_much(settings, skew_s, expected):
    def now():
        return time.time() + skew_s

    engine = make_engine(settings.database_url)
    with engine.connect() as connection:
        database = check_database_clock("database clock", connection, now)
    engine.dispose()
    store = check_store_clock("store clock", settings.s3_endpoint, now)
    assert (database.verdict, store.verdict) == expected
    assert database.found == f"{-skew_s:+.1f} s from this host's"


def test_damaged_and_missing_models_are_problems(healthy, checkpoints):
    found = findings(healthy | {"DRAGQUEUE_CHECKPOINTS": str(checkpoints)})
    assert {name: found[name][0] for name in ("model damaged", "model missing", "model tiny")} == {
        "model damaged": PROBLEM, "model missing": PROBLEM, "model tiny": OK
    }  # fmt: skip
    assert found["model damaged"][1] == "the hash of damaged.safetensors is not the manifest's"


def test_files_that_only_some_jobs_or_other_workers_need_are_warnings(healthy, tmp_path):
    manifest = ModelManifest.load(tmp_path)
    there = manifest.models["tiny"]
    manifest.add(there.model_copy(update={"name": "blind", "encoder": "none.safetensors", "encoder_sha256": "0" * 64}))
    manifest.add(TINY.model_copy(update={"name": "elsewhere", "file": "elsewhere.safetensors", "pool": "big"}))
    assert wrong(healthy) == {"model blind": WARNING, "model elsewhere": WARNING}


def test_a_manifest_that_cannot_be_read_is_a_problem(healthy, tmp_path):
    (tmp_path / "manifest.toml").write_text("[models")
    assert wrong(healthy) == {"checkpoints": PROBLEM}


def test_jobs_of_a_pool_without_workers_are_a_problem(healthy, sessions):
    add_job(sessions)
    assert findings(healthy)["pool default"] == (
        PROBLEM,
        "workers: 0, seen within 10 min: 0; jobs that wait: 1",
        "start dragqueue worker with DRAGQUEUE_POOL=default",
    )
    with sessions.begin() as session:
        report_status(session, WorkerStatus(name="host:1", pool="default", models=[], job_id=None))
    assert findings(healthy)["pool default"][:2] == (OK, "workers: 1, seen within 10 min: 1; jobs that wait: 1")
    execute(healthy["DRAGQUEUE_DATABASE_URL"], "UPDATE workers SET seen_at = seen_at - interval '1 hour'")
    assert findings(healthy)["pool default"][0] == PROBLEM


def test_a_worker_with_a_long_job_is_there(healthy, sessions):
    add_job(sessions)
    with sessions.begin() as session:
        job = claim(session, Claimer(worker="host:1", lease=timedelta(seconds=60)))
        report_status(session, WorkerStatus(name="host:1", pool="default", models=[], job_id=job.id))
    execute(healthy["DRAGQUEUE_DATABASE_URL"], "UPDATE workers SET seen_at = seen_at - interval '1 hour'")
    assert findings(healthy)["pool default"][1] == "workers: 1, seen within 10 min: 1; jobs that wait: 0"


def test_leases_that_nobody_takes_back_call_for_a_reconciler(healthy, sessions):
    add_job(sessions)
    with sessions.begin() as session:
        claim(session, Claimer(worker="host:1", lease=timedelta(hours=-1)))
    assert findings(healthy)["reconciler"][::2] == (PROBLEM, "start dragqueue reconciler")


def test_a_broker_that_may_drop_messages_is_a_warning(healthy, queue):
    queue.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        assert wrong(healthy) == {"broker memory": WARNING}
    finally:
        queue.redis.config_set("maxmemory-policy", "noeviction")


@pytest.mark.parametrize(
    ("wanted", "count", "verdict"),
    [
        ("auto", 0, OK),
        ("cpu", 0, OK),
        ("cuda", 1, OK),
        ("cuda:1", 2, OK),
        ("cuda", 0, PROBLEM),
        ("cuda:2", 2, PROBLEM),
        ("gpu", 1, PROBLEM),
    ],
)
def test_a_device_that_is_not_there_is_a_problem(wanted, count, verdict):
    assert check_chosen_device(wanted, count).verdict == verdict


def test_a_check_that_breaks_down_or_hangs_stops_no_other(healthy):
    def broken(_):
        raise RuntimeError("the ladder fell")

    def endless(_):
        time.sleep(60)

    def fine(_):
        yield from ()

    found = examine(healthy, {"broken": broken, "endless": endless, "fine": fine}, limit_s=0.2)
    assert {finding.name: finding.found for finding in found} == {
        "broken": "the ladder fell", "endless": "no answer within 0.2 s"
    }  # fmt: skip


@pytest.mark.parametrize(("days", "verdict"), [(300, OK), (9, WARNING), (-1, PROBLEM)])
def test_a_certificate_is_tried_and_its_end_is_seen_coming(healthy, tmp_path, days, verdict):
    certificate, key = map(str, write_certificate(tmp_path, days=days))
    found = findings(healthy | {"DRAGQUEUE_C2PA_CERTIFICATE": certificate, "DRAGQUEUE_C2PA_KEY": key})
    assert found["content credentials"][0] == verdict
