"""Problem documents (RFC 9457), the body of every error."""

from collections.abc import Sequence
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from jobs.errors import Problem


class FieldProblem(BaseModel):
    """One thing wrong with one field of a request."""

    field: str  # path in the request, such as points[0].target
    message: str  # what is wrong, with the limit


class ProblemDocument(BaseModel):
    """The body of every error, sent as application/problem+json."""

    type: str = "about:blank"
    title: str
    status: int
    code: str  # stable; test for this one
    detail: str
    errors: list[FieldProblem] = []


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ProblemDocument} for status in (401, 403, 404, 409, 413, 415, 422, 429, 503)
}


def problem_response(
    status: int, code: str, detail: str, problems: Sequence[Problem] = (), headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return a problem document as a response."""
    errors = [FieldProblem(field=problem.field, message=problem.message) for problem in problems]
    document = ProblemDocument(title=code.replace("_", " ").capitalize(), status=status, code=code, detail=detail, errors=errors)
    return JSONResponse(document.model_dump(), status, headers, media_type="application/problem+json")
