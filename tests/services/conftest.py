"""Real servers through the project's own launcher; a fresh database for each test."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from fastapi.testclient import TestClient
from psycopg import sql

from api.app import create_app
from embedded.service import Service, prepare, running_service
from embedded.stack import Stack, local_stack
from jobs.database import Sessions, make_sessions
from jobs.queue.broker import Broker
from jobs.settings import Settings
from jobs.storage.objects import Storage
from jobs.tables import DEFAULT_TENANT
from jobs.tenants import keys
from jobs.tenants.keys import Scope
from tests.manifests import write_tiny_checkpoints
from tests.receivers import Receiver, receiving
from worker.reconciler.webhook_delivery import WebhookDeliverer

QUICK = {
    "LEASE_S": "2", "BEAT_S": "0.4", "SWEEP_S": "0.5", "PROGRESS_INTERVAL_S": "0.1", "THREADS": "1", "DRAIN_GRACE_S": "0.3",
    "RETRY_DELAY_S": "0.1", "CHECKPOINT_S": "0.5", "TUNING_CHECKPOINT_S": "0.5", "PATIENCE_S": "5", "TIDY_AFTER_S": "0",
}  # fmt: skip


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Path:
    return write_tiny_checkpoints(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def environment(checkpoints) -> dict[str, str]:
    """Of a stack before its servers are started."""
    quick = {f"DRAGQUEUE_{name}": value for name, value in QUICK.items()}
    return dict(os.environ) | quick | {"DRAGQUEUE_CHECKPOINTS": str(checkpoints)}


@pytest.fixture(scope="session")
def servers(environment) -> Iterator[Stack]:
    """PostgreSQL with a migrated template database, Valkey, S3 with its bucket."""
    with local_stack(environment=environment) as stack:
        url = stack.environment["DRAGQUEUE_DATABASE_URL"]
        execute(url, "CREATE DATABASE migrated")
        stack.environment["DRAGQUEUE_DATABASE_URL"] = database_url(url, "migrated")
        prepare(stack.settings())
        yield stack


@pytest.fixture
def stack(servers) -> Iterator[Stack]:
    """The servers with a database of the test's own, in the environment that processes get."""
    name = f"test_{uuid4().hex}"
    template = servers.environment["DRAGQUEUE_DATABASE_URL"]
    admin = database_url(template, "postgres")
    execute(admin, f"CREATE DATABASE {name} TEMPLATE migrated STRATEGY file_copy")
    environment = servers.environment | {"DRAGQUEUE_DATABASE_URL": database_url(template, name)}
    yield Stack(environment, servers.logs)
    execute(admin, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def settings(stack) -> Settings:
    return stack.settings()


@pytest.fixture
def sessions(settings) -> Iterator[Sessions]:
    sessions = make_sessions(settings.database_url)
    yield sessions
    sessions.kw["bind"].dispose()


@pytest.fixture
def storage(settings) -> Storage:
    return Storage.from_settings(settings)


@pytest.fixture
def queue(settings) -> Broker:
    queue = Broker(settings.redis_url)
    queue.redis.flushall()
    return queue


@pytest.fixture
def api_key(sessions) -> str:
    """One that may do everything, of the default tenant."""
    return make_key(sessions)


def make_key(sessions, tenant: str = DEFAULT_TENANT, scopes=(Scope.ADMIN,)) -> str:
    with sessions.begin() as session:
        return keys.create(session, tenant, "test", scopes)


@pytest.fixture
def client(settings, queue, api_key) -> Iterator[TestClient]:
    with api_client(settings, api_key) as client:
        yield client


@contextmanager
def api_client(settings, key, app=None, **options) -> Iterator[TestClient]:
    """The API in this process."""
    app = app or create_app(settings)
    with TestClient(app, follow_redirects=False, headers={"Authorization": f"Bearer {key}"}, **options) as client:
        client.get("/healthz")  # FastAPI makes its routes ready with the first request; several threads of a test must not
        yield client
    app.state.sessions.kw["bind"].dispose()


@pytest.fixture
def service(stack, queue) -> Iterator[Service]:
    """All of it, in processes of its own."""
    with running_service(stack) as service:
        yield service


@pytest.fixture
def deliverer(settings, sessions) -> WebhookDeliverer:
    return WebhookDeliverer.from_settings(sessions, settings)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Somebody who wants to be told."""
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def cleanup() -> Iterator[ExitStack]:
    """For processes that a test starts."""
    with ExitStack() as cleanup:
        yield cleanup


@pytest.fixture
def empty_database(servers) -> Iterator[str]:
    """A database without any table."""
    name, template = f"empty_{uuid4().hex}", servers.environment["DRAGQUEUE_DATABASE_URL"]
    admin = database_url(template, "postgres")
    execute(admin, f"CREATE DATABASE {name}")
    yield database_url(template, name)
    execute(admin, f"DROP DATABASE {name} WITH (FORCE)")


def open_to_nobody(path: Path) -> None:
    """pytest closes its folders to others; PostgreSQL runs as nobody when we are root."""
    for folder in (path, *path.parents):
        if folder.owner() == path.owner() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o011)


def database_url(url: str, name: str) -> str:
    """The same server, another database."""
    head, _, query = url.partition("?")
    return f"{head.rpartition('/')[0]}/{name}?{query}"


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(sql.SQL(statement))
