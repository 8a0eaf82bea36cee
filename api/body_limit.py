"""Middleware that limits the bytes of request bodies, by the declared length and while they arrive."""

from collections.abc import Mapping

from fastapi import status
from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.schemas.problems import problem_response


class BodyTooLarge(Exception):
    """Raised when a body grows past its limit while it arrives."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        super().__init__(f"the body may have {max_bytes} bytes")


class BodyLimit:
    """ASGI middleware that refuses bodies over the limit."""

    def __init__(self, app: ASGIApp, max_bytes: int, exceptions: Mapping[str, int]) -> None:
        """Wrap an application.

        Args:
            exceptions: limits of paths whose bodies never lie in memory as a whole.
        """
        self.app = app
        self.max_bytes = max_bytes
        self.exceptions = exceptions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        max_bytes = self.exceptions.get(scope["path"], self.max_bytes)
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > max_bytes:
            await body_too_large_response(BodyTooLarge(max_bytes))(scope, receive, send)
            return
        received = 0

        async def receive_and_count() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > max_bytes:
                raise BodyTooLarge(max_bytes)
            return message

        await self.app(scope, receive_and_count, send)


def body_too_large_response(error: BodyTooLarge) -> JSONResponse:
    """Return the problem document for a body over the limit."""
    return problem_response(status.HTTP_413_CONTENT_TOO_LARGE, "body_too_large", str(error))
