"""Whether the process lives, and whether it can work."""

from fastapi import APIRouter, Request, Response
from redis import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from api.dependencies import QueueDep, StorageDep
from api.schemas.jobs import Health
from jobs.errors import StorageUnavailable
from jobs.queue.broker import Broker
from jobs.storage.objects import Storage

router = APIRouter()


@router.get("/healthz")
def healthz() -> Health:
    """The process answers."""
    return Health(status="ok")


@router.get("/readyz")
def readyz(request: Request, response: Response, storage: StorageDep, queue: QueueDep) -> Health:
    """Database, broker and store answer too; 503 with the reasons when they do not."""
    problems = [problem for problem in (database(request), broker(queue), store(storage)) if problem]
    if problems:
        response.status_code = 503
    return Health(status="unavailable" if problems else "ok", problems=problems)


def database(request: Request) -> str | None:
    try:
        with request.app.state.sessions() as session:
            session.execute(text("SELECT 1 FROM jobs LIMIT 1"))
    except SQLAlchemyError as error:
        return f"database: {type(error).__name__}"
    return None


def broker(queue: Broker) -> str | None:
    try:
        queue.check()
    except RedisError as error:
        return f"broker: {type(error).__name__}"
    return None


def store(storage: Storage) -> str | None:
    try:
        storage.check()
    except StorageUnavailable as error:
        return f"store: {error}"
    return None
