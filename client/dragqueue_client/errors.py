"""What can go wrong between a client and the service.

ClientError
├── Refused       the service answered with an error; its code, fields and reasons are attributes
├── ServiceAway   it does not answer, or not in time, however often it was asked
├── Damaged       what was downloaded is not what the service said it is
└── TookTooLong   a job has not ended in the time its caller gave it
"""

from collections.abc import Mapping
from dataclasses import dataclass

import httpx2


class ClientError(Exception):
    pass


@dataclass(frozen=True)
class FieldProblem:
    field: str  # path in the request, such as points[0].target
    message: str


class Refused(ClientError):
    """status: HTTP. code: stable, such as invalid_job. problems: of each field that is wrong."""

    def __init__(self, status: int, code: str, detail: str, problems: list[FieldProblem]) -> None:
        self.status = status
        self.code = code
        self.problems = problems
        super().__init__(detail)

    @classmethod
    def of(cls, response: httpx2.Response) -> "Refused":
        if "problem+json" not in response.headers.get("content-type", ""):
            return cls(response.status_code, "http_error", f"the service answered HTTP {response.status_code}", [])
        document: Mapping[str, object] = response.json()
        errors = document.get("errors")
        problems = [FieldProblem(**error) for error in errors] if isinstance(errors, list) else []
        return cls(response.status_code, str(document["code"]), f"the service refused: {document['detail']}", problems)


class ServiceAway(ClientError):
    pass


class Damaged(ClientError):
    pass


class TookTooLong(ClientError):
    pass
