"""/healthz, /readyz: whether the process lives, and whether it can work."""

from fastapi import APIRouter, Response
from redis import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.dependencies import BrokerDep, SessionsDep, StorageDep
from api.schemas.health import Health
from jobs.database import Sessions
from jobs.errors import StorageUnavailable
from jobs.queue.broker import Broker
from jobs.storage.objects import Storage

router = APIRouter()


@router.get("/healthz")
def healthz() -> Health:
    """Answer that the process lives."""
    return Health(status="ok")


@router.get("/readyz")
def readyz(response: Response, sessions: SessionsDep, storage: StorageDep, broker: BrokerDep) -> Health:
    """Check that database, broker and store answer; 503 with the reasons when they do not."""
    problems = [problem for problem in (check_database(sessions), check_broker(broker), check_store(storage)) if problem]
    if problems:
        response.status_code = 503
    return Health(status="unavailable" if problems else "ok", problems=problems)


def check_database(sessions: Sessions) -> str | None:
    """Return what is wrong with the database, or None."""
    try:
        with sessions() as session:
            session.execute(text("SELECT 1 FROM jobs LIMIT 1"))
    except SQLAlchemyError as error:
        return f"database: {type(error).__name__}"
    return None


def check_broker(broker: Broker) -> str | None:
    """Return what is wrong with the broker, or None."""
    try:
        broker.check()
    except RedisError as error:
        return f"broker: {type(error).__name__}"
    return None


def check_store(storage: Storage) -> str | None:
    """Return what is wrong with the store, or None."""
    try:
        storage.check()
    except StorageUnavailable as error:
        return f"store: {error}"
    return None
