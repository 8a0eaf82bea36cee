"""The answer to a request that made something: new, or repeated for an idempotency key seen before."""

from dataclasses import dataclass
from typing import Any

from fastapi.responses import JSONResponse


@dataclass(frozen=True)
class Accepted:
    """The JSON that answers a submission."""

    answer: dict[str, Any]
    location: str  # of what was made
    replayed: bool = False  # it is the answer to an earlier request with the same idempotency key

    def response(self, status: int) -> JSONResponse:
        """Return the answer as a response."""
        headers = {"Location": self.location} | ({"Idempotency-Replayed": "true"} if self.replayed else {})
        return JSONResponse(self.answer, status_code=status, headers=headers)
