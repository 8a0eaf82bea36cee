"""The answer to a request that made something: new, or repeated for an idempotency key seen before."""

from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse


@dataclass(frozen=True)
class Accepted:
    """The JSON that answers a submission."""

    answer: dict[str, Any]
    replayed: bool = False  # it is the answer to an earlier request with the same idempotency key

    def response(self, location: str) -> JSONResponse:
        """Return the answer as a response of status 202."""
        headers = {"Location": location} | ({"Idempotency-Replayed": "true"} if self.replayed else {})
        return JSONResponse(self.answer, status_code=202, headers=headers)
