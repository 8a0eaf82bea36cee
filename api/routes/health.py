"""/healthz, /readyz: whether the process lives, and whether it can work. They wait for no thread that another route needs."""

from fastapi import APIRouter, Request, Response

from api.readiness import Readiness
from api.schemas.health import Health

router = APIRouter()


@router.get("/healthz")
async def healthz() -> Health:
    """Answer that the process lives."""
    return Health(status="ok")


@router.get("/readyz")
async def readyz(request: Request, response: Response) -> Health:
    """Name the servers that do not answer within a second; 503 when there are any. The log says what is wrong with them."""
    readiness: Readiness = request.app.state.readiness
    problems = await readiness.problems()
    if problems:
        response.status_code = 503
    return Health(status="unavailable" if problems else "ok", problems=problems)
