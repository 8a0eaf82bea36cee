"""Errors of the client.

ClientError
├── RequestRefused      the service answered with an error; its code and its problems are attributes
├── ServiceUnavailable  the service does not answer, or not in time, after every retry
├── DownloadDamaged     what was downloaded is not what the service named
└── WaitTimeout         a job has not ended in the time that its caller gave it
"""

from collections.abc import Mapping
from dataclasses import dataclass

import httpx2


class ClientError(Exception):
    """The base of every error that this package raises itself."""


@dataclass(frozen=True)
class FieldProblem:
    """What is wrong with one field of a request."""

    field: str  # path in the request, such as points[0].target
    message: str


class RequestRefused(ClientError):
    """The service answered with an error.

    Attributes:
        status: the HTTP status.
        code: a stable word that a program may test for, such as invalid_job.
        problems: each field that is wrong, of a request that is not valid.
    """

    def __init__(self, status: int, code: str, detail: str, problems: list[FieldProblem]) -> None:
        self.status = status
        self.code = code
        self.problems = problems
        super().__init__(detail)

    @classmethod
    def from_response(cls, response: httpx2.Response) -> "RequestRefused":
        """Return the error that a response stands for; its body must have been read."""
        if "problem+json" not in response.headers.get("content-type", ""):
            return cls(response.status_code, "http_error", f"the service answered HTTP {response.status_code}", [])
        document: Mapping[str, object] = response.json()
        errors = document.get("errors")
        problems = [FieldProblem(**error) for error in errors] if isinstance(errors, list) else []
        return cls(response.status_code, str(document["code"]), f"the service refused: {document['detail']}", problems)


class ServiceUnavailable(ClientError):
    """The service does not answer, or not in time, after every retry."""


class DownloadDamaged(ClientError):
    """What was downloaded is not what the service named."""


class WaitTimeout(ClientError):
    """A job has not ended in the time that its caller gave it."""
