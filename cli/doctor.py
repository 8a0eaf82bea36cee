"""dragqueue doctor: whether everything a service needs is there and right, and what to do where it is not."""

import importlib.util
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import Connection, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from cli.errors import CommandError
from cli.models import sha256_of
from cli.settings import read_settings
from jobs.database import make_engine
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.queue.broker import Broker
from jobs.queue.claims import count_claimable
from jobs.settings import Settings
from jobs.storage.objects import REQUEST_TIMEOUTS, Storage
from jobs.tables import Base
from migrations.upgrade import alembic_config

LIMIT_S = 120.0  # for all checks, which run side by side; a large checkpoint's hash takes the longest
OLDEST_POSTGRES = 14
OLDEST_REDIS = 6
DATABASE_SKEW_S = 5.0
STORE_SKEW_S, MOST_STORE_SKEW_S = 60.0, 900.0  # stores refuse signatures that are older
HTTP_TIMEOUT_S = 5.0
SEEN_S = 600.0  # a worker that said something, or renewed its job's lease, within that time is there
OVERDUE_S = 60.0  # a lease that ran out this long ago should have been noticed
MOST_WAITING = 1000  # jobs that are counted
LITTLE_SPACE, TOO_LITTLE_SPACE = 2 * 10**9, 10**8  # bytes
LITTLE_VALIDITY = timedelta(days=30)  # of a certificate
PRIVILEGES = ("SELECT", "INSERT", "UPDATE", "DELETE")
COLORS = {"ok": "green", "warning": "yellow", "problem": "red"}


class Verdict(StrEnum):
    OK = "ok"
    WARNING = "warning"  # works, but not as it should
    PROBLEM = "problem"  # jobs fail or wait because of it


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    name: str
    verdict: Verdict
    found: str
    advice: str = ""  # what to do


Findings = Iterator[Finding]


def ok(name: str, found: str, advice: str = "") -> Finding:
    return Finding(name, Verdict.OK, found, advice)


def warning(name: str, found: str, advice: str) -> Finding:
    return Finding(name, Verdict.WARNING, found, advice)


def problem(name: str, found: str, advice: str) -> Finding:
    return Finding(name, Verdict.PROBLEM, found, advice)


def tell(environment: Mapping[str, str], *, as_json: bool) -> bool:
    """Print what was found; whether there is no problem."""
    with Console(stderr=True).status("checking servers, checkpoints, device"):
        findings = examine(environment)
    if as_json:
        Console(soft_wrap=True, highlight=False, markup=False, emoji=False).print(
            json.dumps(list(map(asdict, findings)), indent=2)
        )
    else:
        Console().print(as_table(findings))
    return all(finding.verdict != Verdict.PROBLEM for finding in findings)


def as_table(findings: list[Finding]) -> Table:
    table = Table("name", "", "found", "what to do")
    for finding in findings:
        table.add_row(
            finding.name, f"[{COLORS[finding.verdict]}]{finding.verdict}[/]", escape(finding.found), escape(finding.advice)
        )
    return table


def examine(environment: Mapping[str, str]) -> list[Finding]:
    """All checks, side by side; one that fails or hangs stops no other."""
    try:
        settings = read_settings(environment)
    except CommandError as error:
        return [problem("settings", str(error).removeprefix("settings: "), "set these variables: jobs/settings.py explains each")]
    until = time.monotonic() + LIMIT_S
    running = [Examination(check, settings) for check in CHECKS]
    return [finding for examination in running for finding in examination.outcome(until - time.monotonic())]


class Examination:
    """A check in a thread of its own, which does not keep the process alive."""

    def __init__(self, check: Callable[[Settings], Findings], settings: Settings) -> None:
        self.name = check.__name__
        self.findings: list[Finding] = []
        self.thread = threading.Thread(target=self.run, args=(check, settings), daemon=True)
        self.thread.start()

    def run(self, check: Callable[[Settings], Findings], settings: Settings) -> None:
        try:
            self.findings.extend(check(settings))
        except Exception as error:  # whatever it is, it is a finding
            self.findings.append(problem(self.name, sentence(error), "see the message"))

    def outcome(self, limit_s: float) -> list[Finding]:
        self.thread.join(max(limit_s, 0.0))
        if self.thread.is_alive():
            return [
                *self.findings,
                problem(self.name, f"no answer within {LIMIT_S:g} s", "see whether it hangs, or is only slow"),
            ]
        return self.findings


def sentence(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__


def guarded(name: str, check: Callable[..., Finding], *arguments: Any, advice: str) -> Finding:
    """A check's finding, or that it failed and what to do then."""
    try:
        return check(name, *arguments)
    except Exception as error:
        return problem(name, sentence(error), advice)


def postgres(settings: Settings) -> Findings:
    engine = make_engine(settings.database_url)
    try:
        with engine.connect() as connection:
            yield from database_findings(connection)
    except OperationalError as error:
        yield problem("PostgreSQL", sentence(error), "start it, and see that DRAGQUEUE_DATABASE_URL is right")
    finally:
        engine.dispose()


def database_findings(connection: Connection) -> Findings:
    yield asked("PostgreSQL", database_version, connection)
    yield asked("database clock", database_clock, connection)
    migrated = asked("migrations", revision, connection)
    yield migrated
    if migrated.verdict == Verdict.OK:
        yield asked("database rights", rights, connection)
        yield asked("reconciler", overdue_leases, connection)
        yield from workers(connection)


def asked(name: str, check: Callable[[str, Connection], Finding], connection: Connection) -> Finding:
    """A check in a transaction of its own, which leaves nothing behind."""
    try:
        return guarded(name, check, connection, advice="see the message and PostgreSQL's log")
    finally:
        connection.rollback()


def database_version(name: str, connection: Connection) -> Finding:
    version = connection.scalar(text("SHOW server_version"))
    if int(connection.scalar(text("SHOW server_version_num")) or 0) < OLDEST_POSTGRES * 10_000:
        return problem(name, f"version {version}", f"upgrade it to {OLDEST_POSTGRES} or newer")
    return ok(name, f"version {version}")


def revision(name: str, connection: Connection) -> Finding:
    scripts = ScriptDirectory.from_config(alembic_config(""))
    newest, current = scripts.get_current_head(), MigrationContext.configure(connection).get_current_revision()
    if current == newest:
        return ok(name, f"at {current}, the newest")
    if current in {None, *(script.revision for script in scripts.walk_revisions())}:
        return problem(name, f"at {current or 'none'}, the newest is {newest}", "run dragqueue migrate")
    return problem(name, f"at {current}, which this release does not know", "install the release that migrated the database")


def database_clock(name: str, connection: Connection) -> Finding:
    before = time.time()
    theirs = float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0)
    skew_s = theirs - (before + time.time()) / 2
    if abs(skew_s) <= DATABASE_SKEW_S:
        return ok(name, f"{skew_s:+.1f} s from this host's")
    harm = "leases and ages use the database's clock alone, but links and webhooks this host's: let NTP set both"
    return warning(name, f"{skew_s:+.1f} s from this host's", harm)


def rights(name: str, connection: Connection) -> Finding:
    """Whether the role may read and write every table, and does so now: a standby takes no writes."""
    holds = text("SELECT has_table_privilege(:table, :privilege)")
    wanted = [(table, privilege) for table in sorted(Base.metadata.tables) for privilege in PRIVILEGES]
    lacking = [
        f"{privilege} on {table}"
        for table, privilege in wanted
        if not connection.scalar(holds, {"table": table, "privilege": privilege})
    ]
    if lacking:
        return problem(name, f"the role lacks {', '.join(lacking)}", "GRANT it what it lacks")
    connection.execute(text("INSERT INTO tenants (id) VALUES (:id)"), {"id": f"doctor-{uuid4()}"})
    return ok(name, "may read and write every table")


# a worker is there that said something lately, or whose job's lease was renewed lately
WORKERS = text("""
SELECT pool, count(*) AS known, count(*) FILTER (WHERE seen_at > clock_timestamp() - make_interval(secs => :seen_s) OR EXISTS (
    SELECT FROM jobs WHERE jobs.worker = workers.name AND state = 'running' AND lease_expires_at > clock_timestamp()
)) AS seen
FROM workers GROUP BY pool
""")


def workers(connection: Connection) -> Findings:
    """For each pool: who works there, and whether anybody waits in vain."""
    known = {row.pool: row for row in connection.execute(WORKERS, {"seen_s": SEEN_S})}
    waiting = count_claimable(Session(connection), MOST_WAITING)
    if not known and not waiting:
        yield ok("workers", "none has run a job yet, no job waits")
    for pool in sorted({*known, *waiting}):
        yield pool_finding(
            pool, known[pool].known if pool in known else 0, known[pool].seen if pool in known else 0, waiting.get(pool, 0)
        )


def pool_finding(pool: str, known: int, seen: int, waiting: int) -> Finding:
    name = f"pool {pool}"
    found = f"workers: {known}, seen within {SEEN_S / 60:g} min: {seen}; jobs that wait: {waiting}"
    if waiting and not known:
        return problem(name, found, f"start dragqueue worker with DRAGQUEUE_POOL={pool}")
    if waiting and not seen:
        return problem(name, found, f"see whether its workers live, else start dragqueue worker with DRAGQUEUE_POOL={pool}")
    return ok(name, found)


def overdue_leases(name: str, connection: Connection) -> Finding:
    statement = text("SELECT count(*) FROM jobs WHERE lease_expires_at < clock_timestamp() - make_interval(secs => :overdue_s)")
    overdue = connection.scalar(statement, {"overdue_s": OVERDUE_S})
    if overdue:
        return problem(name, f"{overdue} leases ran out and nobody noticed", "start dragqueue reconciler")
    return ok(name, "no lease is overdue")


def broker(settings: Settings) -> Findings:
    redis = Broker(settings.redis_url).redis
    try:
        facts: dict[str, Any] = redis.info()
        yield broker_version(facts)
    except Exception as error:
        yield problem("broker", sentence(error), "start Redis or Valkey, and see that DRAGQUEUE_REDIS_URL is right")
        return
    yield guarded("broker rights", broker_write, redis, advice="see its log: memory, disk, or a replica that takes no writes")
    yield eviction(facts)
    yield persistence(facts)
    redis.close()


def broker_version(facts: Mapping[str, Any]) -> Finding:
    server = f"{facts.get('server_name', 'redis')} {facts.get('valkey_version') or facts['redis_version']}"
    if int(facts["redis_version"].split(".")[0]) < OLDEST_REDIS:
        return problem("broker", server, f"upgrade it to {OLDEST_REDIS} or newer")
    return ok("broker", server)


def broker_write(name: str, redis: Any) -> Finding:
    redis.set(f"doctor:{uuid4()}", "", ex=1)
    return ok(name, "takes writes")


def eviction(facts: Mapping[str, Any]) -> Finding:
    policy = facts.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        return ok("broker memory", policy)
    return warning(
        "broker memory", f"maxmemory-policy {policy}", "set maxmemory-policy noeviction: others drop messages, which delays jobs"
    )


def persistence(facts: Mapping[str, Any]) -> Finding:
    if facts.get("aof_enabled"):
        return ok("broker persistence", "appendonly")
    hint = "nothing needed: the reconciler sends again what a restart forgets; appendonly yes spares the wait"
    return ok("broker persistence", "no appendonly file", hint)


def store(settings: Settings) -> Findings:
    storage, key = Storage.from_settings(settings, REQUEST_TIMEOUTS), f"doctor/{uuid4()}"
    reached = guarded("store", bucket, storage, advice="start it, and see that DRAGQUEUE_S3_ENDPOINT and both keys are right")
    yield guarded("store clock", store_clock, settings.s3_endpoint, advice="see that DRAGQUEUE_S3_ENDPOINT is right")
    yield reached
    if reached.verdict == Verdict.OK:
        needs = f"let the key get, put and delete objects of {settings.s3_bucket}"
        yield guarded("store rights", put_and_get, storage, key, advice=needs)
        yield guarded(
            "store links", link, storage, key, advice="set DRAGQUEUE_S3_PUBLIC_ENDPOINT to the address that clients reach"
        )
        yield guarded("store deletion", delete, storage, key, advice=needs)


def bucket(name: str, storage: Storage) -> Finding:
    if not storage.has_bucket():
        return problem(name, f"there is no bucket {storage.bucket}", "run dragqueue migrate, which makes it")
    return ok(name, f"has the bucket {storage.bucket}")


def put_and_get(name: str, storage: Storage, key: str) -> Finding:
    storage.put(key, b"probe", "text/plain")
    if storage.get(key) != b"probe":
        return problem(name, "an object came back changed", "see what lies between this host and the store")
    return ok(name, "puts and gets objects")


def link(name: str, storage: Storage, key: str) -> Finding:
    """Whether what clients are sent can be fetched, at least from here."""
    url = storage.make_download_url(key, "probe.txt")
    answer = httpx2.get(url, timeout=HTTP_TIMEOUT_S)
    if answer.content != b"probe":
        reason = f"{httpx2.URL(url).netloc.decode()} answered {answer.status_code}"
        return problem(
            name, reason, "see that DRAGQUEUE_S3_PUBLIC_ENDPOINT leads to the same store, with the host name unchanged"
        )
    return ok(name, f"can be fetched from {httpx2.URL(url).netloc.decode()}")


def delete(name: str, storage: Storage, key: str) -> Finding:
    storage.remove([key])
    return ok(name, "deletes objects")


def store_clock(name: str, endpoint: str) -> Finding:
    before = time.time()
    answer = httpx2.get(endpoint, timeout=HTTP_TIMEOUT_S)  # that it refuses us is an answer too
    if "date" not in answer.headers:
        return warning(name, "the store does not tell its time", "see that it is within 15 min of this host's: signatures expire")
    theirs = parsedate_to_datetime(answer.headers["date"]).astimezone(UTC).timestamp()
    skew_s = theirs - (before + time.time()) / 2
    found, advice = (
        f"{skew_s:+.0f} s from this host's",
        "let both keep time by NTP: signatures and links expire by the store's clock",
    )
    if abs(skew_s) > STORE_SKEW_S:
        return (problem if abs(skew_s) > MOST_STORE_SKEW_S else warning)(name, found, advice)
    return ok(name, found)


def checkpoints(settings: Settings) -> Findings:
    try:
        manifest = ModelManifest.load(settings.checkpoints)
    except Exception as error:
        yield problem("checkpoints", sentence(error), "see that DRAGQUEUE_CHECKPOINTS is a folder with a manifest.toml")
        return
    if not manifest.models:
        yield warning("checkpoints", f"{settings.checkpoints} has no model", "run dragqueue models import or download")
    for entry in manifest.models.values():
        needed = entry.pool == settings.pool
        yield guarded(f"model {entry.name}", model, manifest, entry, needed, advice="see that its files can be read")
    if settings.lpips_file is not None and not settings.lpips_file.is_file():
        yield warning("lpips", f"there is no {settings.lpips_file}", "put it there or unset DRAGQUEUE_LPIPS_FILE")


def model(name: str, manifest: ModelManifest, entry: ModelEntry, needed: bool) -> Finding:
    """Of its files only the generator's is needed for every job, and that only by workers of its pool."""
    files = manifest.files(entry)
    missing = [path for path in files if not path.is_file()]
    damaged = [path.name for path, sha256 in files.items() if path not in missing and sha256_of(path) != sha256]
    if damaged:
        return problem(
            name, f"the hash of {', '.join(damaged)} is not the manifest's", "copy the file again, or import the model again"
        )
    found = f"there is no {', '.join(map(str, missing))}"
    if manifest.path(entry) in missing and needed:
        return problem(name, found, "copy the file there, or take the model out by dragqueue models remove")
    if missing:
        return warning(name, found, f"copy it to the hosts of the workers of pool {entry.pool}; some of their jobs need it")
    return ok(name, f"{entry.resolution} px, {len(files)} files with the right hash")


def credentials(settings: Settings) -> Findings:
    """Whether a reconciler on this host can sign copies, where it is to."""
    from worker.reconciler.c2pa import C2paSettingsInvalid, C2paSigner

    name = "content credentials"
    try:
        found = C2paSigner.from_settings(settings)
    except C2paSettingsInvalid as error:
        yield problem(name, str(error), "see docs/provenance.md; only the host of the reconciler needs these files")
        return
    if found is None:
        return
    valid = f"{found.subject}, valid until {found.valid_until:%Y-%m-%d}"
    if found.valid_until < datetime.now(UTC) + LITTLE_VALIDITY:
        yield warning(name, valid, "have it renewed, then start the reconciler again")
    else:
        yield ok(name, valid)


def device(settings: Settings) -> Findings:
    """What a worker on this host would compute on."""
    if importlib.util.find_spec("torch") is None:
        yield ok("device", "PyTorch is not installed", "to run a worker here: pip install 'dragqueue[engine]'")
        return
    import torch

    yield chosen_device(settings.device, torch.cuda.device_count() if torch.cuda.is_available() else 0)


def chosen_device(wanted: str, count: int) -> Finding:
    found = f"DRAGQUEUE_DEVICE is {wanted}; {count} CUDA devices"
    kind, _, number = wanted.partition(":")
    if wanted not in ("auto", "cpu", "cuda", f"cuda:{number}") or (number and not number.isdigit()):
        return problem("device", found, "set DRAGQUEUE_DEVICE to auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= count:
        return problem(
            "device", found, "see nvidia-smi, install a CUDA build of PyTorch, or set DRAGQUEUE_DEVICE to what there is"
        )
    return ok("device", found)


def disk(settings: Settings) -> Findings:
    """Workers keep a running job's animation in the temporary folder."""
    folder = Path(tempfile.gettempdir())
    with tempfile.TemporaryFile() as file:
        file.write(b"probe")
    free = shutil.disk_usage(folder).free
    found = f"{free / 1e9:.1f} GB free in {folder}"
    if free < LITTLE_SPACE:
        yield (problem if free < TOO_LITTLE_SPACE else warning)("disk", found, "make room, or set TMPDIR to a larger disk")
    else:
        yield ok("disk", found)


CHECKS = (postgres, broker, store, checkpoints, credentials, device, disk)
