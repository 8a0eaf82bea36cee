"""The one place where errors become HTTP statuses."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import InternalError, OperationalError, TimeoutError
from starlette.exceptions import HTTPException

from api.body_limit import BodyTooLarge, too_large
from api.schemas.problems import problem_response
from jobs import errors
from jobs.spec.validation import field_path

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
    errors.StorageUnavailable: 503,
}
OURS = ("invalid_parameters", "http_error", "body_too_large", "database_unavailable", "internal_error")
CODES = sorted({*(error.code for error in STATUS), *OURS})  # every one that an answer can have
RETRY_AFTER = {"Retry-After": "5"}
HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: RETRY_AFTER, 503: RETRY_AFTER}
logger = logging.getLogger(__name__)


def add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(errors.JobError, job_error)
    app.add_exception_handler(RequestValidationError, bad_parameters)
    app.add_exception_handler(HTTPException, http_error)
    app.add_exception_handler(BodyTooLarge, body_too_large)
    for database_away in (OperationalError, TimeoutError, InternalError):  # the last from a standby, which takes no writes
        app.add_exception_handler(database_away, unavailable)
    app.add_exception_handler(Exception, internal_error)


def job_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.JobError)
    status = STATUS[type(error)]
    problems = error.problems if isinstance(error, errors.InvalidJob) else []
    return problem_response(status, error.code, str(error), problems, HEADERS.get(status))


def bad_parameters(request: Request, error: Exception) -> JSONResponse:
    """Path and query parameters that FastAPI refuses."""
    assert isinstance(error, RequestValidationError)
    problems = [errors.Problem(field=field_path(part["loc"][1:]), message=part["msg"]) for part in error.errors()]
    return problem_response(422, "invalid_parameters", str(errors.InvalidJob(problems)), problems)


def http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    if error.status_code == 400:  # FastAPI's answer to bytes that are no text; to text that is no JSON it is 422
        problems = [errors.Problem(field="body", message=str(error.detail))]
        return problem_response(422, "invalid_parameters", str(errors.InvalidJob(problems)), problems)
    return problem_response(error.status_code, "http_error", str(error.detail), headers=dict(error.headers or {}))


def body_too_large(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BodyTooLarge)
    return too_large(error)


def unavailable(request: Request, error: Exception) -> JSONResponse:
    logger.warning("%s %s: %s", request.method, request.url.path, str(error).splitlines()[0])
    return problem_response(503, "database_unavailable", "the database does not answer", headers=RETRY_AFTER)


def internal_error(request: Request, error: Exception) -> JSONResponse:
    """A defect of ours; the server's log has its traceback."""
    return problem_response(500, "internal_error", "the service failed; the error was logged")
