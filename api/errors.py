"""The mapping of errors to HTTP statuses: the only one."""

import errno
import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from psycopg.errors import LockNotAvailable
from sqlalchemy.exc import InternalError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.bodies import BodyTooLarge
from api.media_types import UnsupportedMediaType
from api.schemas.problems import problem_response
from api.transport import SlowBody
from jobs import errors
from jobs.spec.validation import MAX_PROBLEMS, field_path

STATUS: dict[type[errors.JobError], int] = {
    errors.InvalidJob: 422,
    errors.JobNotFound: 404,
    errors.ArtifactNotFound: 404,
    errors.ObjectMissing: 404,
    errors.ModelNotFound: 404,
    errors.UploadNotFound: 404,
    errors.ParentUnusable: 409,
    errors.JobActive: 409,
    errors.KeyInUse: 409,
    errors.IdTaken: 409,
    errors.UploadInUse: 409,
    errors.NotUploaded: 409,
    errors.BatchNotFound: 404,
    errors.WebhookNotFound: 404,
    errors.InvalidWebhook: 422,
    errors.WebhookDisabled: 409,
    errors.KeyReused: 422,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.RateLimited: 429,
    errors.QuotaExceeded: 429,
    errors.DecoderBusy: 503,
    errors.Busy: 503,
    errors.StorageUnavailable: 503,
}
OTHER_CODES = (
    "invalid_parameters",
    "http_error",
    "body_too_large",
    "unsupported_media_type",
    "slow_body",
    "database_unavailable",
    "internal_error",
)
CODES = sorted({*(error.code for error in STATUS), *OTHER_CODES})  # every one that an answer can have
RETRY_AFTER = {"Retry-After": "5"}
CLIENT_GONE = 499  # nobody reads it; what logs call a request whose client has gone
RETRY_SOON = {"Retry-After": "1"}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: RETRY_AFTER, 503: RETRY_AFTER}
logger = logging.getLogger(__name__)


def add_error_handlers(app: FastAPI) -> None:
    """Let the application answer every error with a problem document."""
    app.add_exception_handler(errors.JobError, job_error)
    app.add_exception_handler(RequestValidationError, bad_parameters)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(BodyTooLarge, body_too_large)
    app.add_exception_handler(SlowBody, slow_body)
    app.add_exception_handler(ClientDisconnect, client_gone)
    app.add_exception_handler(OSError, disk_full)
    app.add_exception_handler(UnsupportedMediaType, unsupported_media_type)
    for error in (OperationalError, TimeoutError, InternalError):  # the last from a standby, which takes no writes
        app.add_exception_handler(error, database_unavailable)
    app.add_exception_handler(Exception, internal_error)


def job_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error of the domain."""
    assert isinstance(error, errors.JobError)
    status = STATUS[type(error)]
    problems = error.problems if isinstance(error, errors.InvalidJob) else []
    if isinstance(error, (errors.StorageUnavailable, errors.ObjectMissing)):  # its message names hosts, buckets or keys
        logger.warning("%s %s: %s", request.method, request.url.path, error)
        detail = "the store does not answer" if status == 503 else "the object is not in the store"
        return problem_response(status, error.code, detail, headers=HEADERS.get(status))
    return problem_response(status, error.code, str(error), problems, HEADERS.get(status))


def bad_parameters(request: Request, error: Exception) -> JSONResponse:
    """Answer parameters and bodies that FastAPI refuses."""
    assert isinstance(error, RequestValidationError)
    problems = [errors.Problem(field=field_path(part["loc"][1:]), message=part["msg"]) for part in error.errors()[:MAX_PROBLEMS]]
    return problem_response(422, "invalid_parameters", str(errors.InvalidJob(problems)), problems)


def http_error(request: Request, error: Exception) -> JSONResponse:
    """Answer an error that FastAPI or Starlette raises, such as an unknown path."""
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's answer to bytes that are no text; to text that is no JSON it is 422
        problems = [errors.Problem(field="body", message=str(error.detail))]
        return problem_response(422, "invalid_parameters", str(errors.InvalidJob(problems)), problems)
    return problem_response(error.status_code, "http_error", str(error.detail), headers=dict(error.headers or {}))


def body_too_large(request: Request, error: Exception) -> JSONResponse:
    """Answer a body over the limit."""
    return problem_response(413, "body_too_large", str(error))


def disk_full(request: Request, error: Exception) -> JSONResponse:
    """Answer while there is no room for files of bodies and pictures. Raises every other error of the system."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    logger.error("%s %s: %s", request.method, request.url.path, error)
    return problem_response(503, errors.StorageUnavailable.code, "there is no room for files", headers=RETRY_AFTER)


def client_gone(request: Request, error: Exception) -> Response:
    """End a request whose client went before its body was whole; nobody reads the answer."""
    return Response(status_code=CLIENT_GONE)


def slow_body(request: Request, error: Exception) -> JSONResponse:
    """Answer a body that arrives too slowly; what is left of it is not read."""
    return problem_response(408, "slow_body", str(error), headers={"Connection": "close"})


def unsupported_media_type(request: Request, error: Exception) -> JSONResponse:
    """Answer a body of a kind that the route does not read."""
    return problem_response(415, "unsupported_media_type", str(error))


def database_unavailable(request: Request, error: Exception) -> JSONResponse:
    """Answer while the database is away, or a row of it is another request's."""
    if isinstance(error, OperationalError) and isinstance(error.orig, LockNotAvailable):
        return problem_response(503, errors.Busy.code, "other requests change the same thing: try again", headers=RETRY_SOON)
    logger.warning("%s %s: %s", request.method, request.url.path, str(error).splitlines()[0])
    return problem_response(503, "database_unavailable", "the database does not answer", headers=RETRY_AFTER)


def internal_error(request: Request, error: Exception) -> JSONResponse:
    """Answer a defect of the service; the server's log has its traceback."""
    return problem_response(500, "internal_error", "the service failed; the error was logged")
