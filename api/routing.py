"""How a route runs: key checked before the body is read, in its tenant's threads, committed before the answer is made.

1. The key, its scope and its rate are checked. Nothing of the body has been read.
2. The request counts among those that its tenant has open, until the last byte of the answer is sent.
3. The media type is checked, and a declared JSON body is read within its limits.
4. The route runs in a thread. Its transaction ends there, before the answer is made of what the route returned: no request
   holds a row of the database while it waits for a thread.
"""

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Message, Receive, Scope, Send

from api.accepted import Accepted
from api.auth import RequiredScope, authorize
from api.bodies import MAX_JSON_BYTES, MAX_JSON_VALUES, WITHOUT_BODY, ByteBudget, check_json_values, limit_body, read_body
from api.concurrency import OpenCount, RouteThreads
from api.media_types import UnsupportedMediaType, read_media_type
from api.transport import AnswerBroken
from api.unit_of_work import UnitOfWork
from jobs.errors import JobError
from jobs.settings import Settings

Endpoint = Callable[..., Any]
T = TypeVar("T")
MEMORY_BYTES = 192 * 10**6, 64 * 10**6  # of all tenants, and of one: two photos of the largest size
FILE_BYTES = 600 * 10**6, 250 * 10**6
CURRENT: ContextVar[Request] = ContextVar("the request that a route runs for")


@dataclass(frozen=True)
class ClientLimits:
    """What bounds the requests of clients in this process."""

    threads: RouteThreads
    open_requests: OpenCount
    max_open_requests: int  # of one tenant
    memory: ByteBudget  # of bodies that are read whole
    files: ByteBudget  # of bodies that are written to files as they arrive
    max_body_bytes: int
    streamed: Mapping[str, int]  # limits of paths whose bodies never lie in memory as a whole

    @classmethod
    def from_settings(cls, settings: Settings) -> "ClientLimits":
        """Make the limits that the settings name."""
        return cls(
            RouteThreads(), OpenCount("requests"), settings.max_open_requests,
            ByteBudget(*MEMORY_BYTES), ByteBudget(*FILE_BYTES), settings.max_body_bytes,
            {"/v1/batches": settings.max_batch_bytes, "/v1/uploads": settings.max_body_bytes},
        )  # fmt: skip


class ApiRoute(APIRoute):
    """A route that may be called with a key alone. See the module."""

    def __init__(self, path: str, endpoint: Endpoint, **options: Any) -> None:
        status = options.get("status_code") or 200
        super().__init__(path, endpoint if is_generator(endpoint) else in_threads(endpoint, status), **options)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check key, limits and media type, then handle the request. Raises what the checks raise."""
        required = find_scope(self.dependant)
        if required is None or scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        request = Request(scope, receive)
        request.state.principal = principal = await authorize(request, required.scope)
        media_type = None if request.method in WITHOUT_BODY else read_media_type(request.headers)
        limits: ClientLimits = request.app.state.client_limits
        max_bytes = MAX_JSON_BYTES if self.body_field else limits.streamed.get(scope["path"], limits.max_body_bytes)
        budget = limits.files if scope["path"] in limits.streamed else limits.memory
        with limits.open_requests.count(principal.tenant, limits.max_open_requests):
            async with budget.hold(principal.tenant) as room:
                receive = await limit_body(request, receive, max_bytes, room)
                if self.body_field is not None:
                    if media_type is None or not media_type.is_json:
                        raise UnsupportedMediaType("Content-Type: must be application/json")
                    receive = await read_json_ahead(Request(scope, receive), receive)
                token = CURRENT.set(request)
                try:
                    await super().handle(scope, receive, send)
                finally:
                    CURRENT.reset(token)


def is_generator(endpoint: Endpoint) -> bool:
    return inspect.isasyncgenfunction(endpoint) or inspect.isgeneratorfunction(endpoint)


def find_scope(dependant: Dependant) -> RequiredScope | None:
    """Return the scope that a route asks for, from the tree of its dependencies."""
    if isinstance(dependant.call, RequiredScope):
        return dependant.call
    return next((found for one in dependant.dependencies if (found := find_scope(one)) is not None), None)


async def read_json_ahead(request: Request, receive: Receive) -> Receive:
    """Read a small JSON body within its limits; return what gives it to FastAPI. Raises BodyTooLarge."""
    body = await read_body(request, MAX_JSON_BYTES)
    check_json_values(body, MAX_JSON_VALUES)
    messages: list[Message] = [{"type": "http.request", "body": bytes(body), "more_body": False}]

    async def give_body() -> Message:
        return messages.pop() if messages else await receive()

    return give_body


def in_threads(endpoint: Endpoint, status: int) -> Endpoint:
    """Return an endpoint that runs in its tenant's threads, commits there, and answers with what it returned.

    A coroutine awaits what it must, and then returns a response, or the rest of its work as a function for one turn.
    """

    @wraps(endpoint)
    async def run(**values: Any) -> Any:
        request = CURRENT.get()
        in_thread = partial(run_in_share, request)
        work: UnitOfWork | None = getattr(request.state, "unit_of_work", None)
        if not inspect.iscoroutinefunction(endpoint):
            return await in_thread(run_and_answer, partial(endpoint, **values), work, status)
        result = await endpoint(**values)
        return result if isinstance(result, Response) else await in_thread(run_and_answer, result, work, status)

    return run


async def run_in_share(request: Request, function: Callable[..., Any], *arguments: object) -> Any:
    """Run a function in a thread of the request's tenant. Raises Busy, and what the function raises."""
    limits: ClientLimits = request.app.state.client_limits
    return await limits.threads.run(request.state.principal.tenant, function, *arguments)


async def stream_in_share(chunks: Iterable[T]) -> AsyncIterator[T]:
    """Yield chunks that are made in threads of the tenant whose route calls this. Raises AnswerBroken."""
    request, iterator = CURRENT.get(), iter(chunks)
    try:
        while (chunk := await run_in_share(request, next, iterator, None)) is not None:
            yield chunk
    except (JobError, SQLAlchemyError) as error:
        raise AnswerBroken(str(error)) from error


def run_and_answer(endpoint: Callable[[], Any], work: UnitOfWork | None, status: int) -> Response:
    """Run an endpoint, end its transaction, and only then make the answer."""
    if work is None:
        return make_response(endpoint(), status)
    try:
        result = endpoint()
        work.commit()
    finally:
        work.close()
    work.follow_up()
    return make_response(result, status)


def make_response(result: Response | Accepted | BaseModel | None, status: int) -> Response:
    """Return the answer with what a route returned."""
    if isinstance(result, Response):
        return result
    if isinstance(result, Accepted):
        return result.response(status)
    if result is None:
        return Response(status_code=status)
    return Response(result.model_dump_json(by_alias=True), status, media_type="application/json")
