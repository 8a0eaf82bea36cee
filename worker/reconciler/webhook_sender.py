"""One HTTP POST to an address that a client chose: pinned to a checked address, limited in time and size, never redirected."""

import math
import ssl
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpcore2

from jobs.webhooks.deliveries import DeliveryOutcome
from jobs.webhooks.egress import EgressPolicy, EgressRefused, ParsedUrl

MAX_READ_BYTES = 4096  # of an answer's body, which is ignored
WRITE_CHUNK_BYTES = 4096
MAX_ERROR_LENGTH = 200
RETRY_AFTER_STATUSES = (429, 503)  # whose Retry-After header counts


@dataclass(frozen=True)
class Deadline:
    """A time by which everything must have ended."""

    at: float  # of time.monotonic()

    def remaining_s(self) -> float:
        """Return the seconds that remain. Raises httpcore2.TimeoutException when there are none."""
        remaining = self.at - time.monotonic()
        if remaining <= 0:
            raise httpcore2.TimeoutException
        return remaining


class DeadlineStream(httpcore2.NetworkStream):
    """A connection whose operations all end by one deadline, so that a receiver cannot prolong a request byte by byte."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self.stream = stream
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self.deadline.remaining_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), WRITE_CHUNK_BYTES):
            self.stream.write(buffer[start : start + WRITE_CHUNK_BYTES], self.deadline.remaining_s())

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        secured = self.stream.start_tls(ssl_context, server_hostname, self.deadline.remaining_s())
        return DeadlineStream(secured, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class PinnedBackend(httpcore2.NetworkBackend):
    """A backend that connects to addresses that it has checked. TLS and the Host header still use the host's name."""

    def __init__(self, policy: EgressPolicy, deadline: Deadline) -> None:
        self.policy = policy
        self.deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Connect to the first address that answers.

        Raises EgressRefused, httpcore2.ConnectError, httpcore2.TimeoutException.
        """
        addresses = self.policy.resolve_allowed(host, port, self.deadline.remaining_s())
        for others, address in reversed(list(enumerate(reversed(addresses)))):
            share_s = self.deadline.remaining_s() / (1 + others)  # a silent address must leave time for the others
            try:
                stream = httpcore2.SyncBackend().connect_tcp(address, port, share_s, None, socket_options)
                return DeadlineStream(stream, self.deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if others == 0:
                    raise
        raise httpcore2.ConnectError("there is no address")


@dataclass(frozen=True, kw_only=True)
class WebhookSender:
    """A sender of POST requests to addresses that clients chose."""

    policy: EgressPolicy
    timeout_s: float  # from the look-up of the host to the answer
    tls: ssl.SSLContext = field(default_factory=httpcore2.default_ssl_context)

    def post(self, url: str, headers: dict[str, str], body: bytes) -> DeliveryOutcome:
        """Send a request. A failure on the way is an outcome too."""
        try:
            return self.send(self.policy.parse(url), headers, body)
        except EgressRefused as error:
            return DeliveryOutcome(error=str(error)[:MAX_ERROR_LENGTH])
        except httpcore2.TimeoutException:
            return DeliveryOutcome(error=f"no answer within {self.timeout_s:g} s")
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return DeliveryOutcome(error=f"{type(error).__name__}: {error}"[:MAX_ERROR_LENGTH])

    def send(self, parsed: ParsedUrl, headers: dict[str, str], body: bytes) -> DeliveryOutcome:
        """Send a request to a URL whose form is allowed. Raises EgressRefused and the errors of httpcore2."""
        backend = PinnedBackend(self.policy, Deadline(time.monotonic() + self.timeout_s))
        url = httpcore2.URL(
            scheme=parsed.scheme.encode(), host=parsed.host.encode(), port=parsed.port, target=parsed.path.encode()
        )
        with (
            httpcore2.ConnectionPool(ssl_context=self.tls, network_backend=backend) as pool,
            pool.stream("POST", url, headers=[("Host", parsed.authority), *headers.items()], content=body) as answer,
        ):
            drain_body(answer)
            return read_outcome(answer)


def drain_body(answer: httpcore2.Response) -> None:
    """Read the beginning of the body, because a receiver that is cut off at once may take it for a failure."""
    read = 0
    with suppress(httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        for chunk in answer.iter_stream():
            read += len(chunk)
            if read > MAX_READ_BYTES:
                break


def read_outcome(answer: httpcore2.Response) -> DeliveryOutcome:
    """Turn an answer's status and headers into an outcome."""
    status = answer.status
    if 200 <= status < 300:
        return DeliveryOutcome(status=status)
    if 300 <= status < 400:
        return DeliveryOutcome(status=status, error=f"HTTP {status}: redirects are not followed")
    retry_after = {name.lower(): value.decode("latin-1") for name, value in answer.headers}.get(b"retry-after")
    retry_after_s = parse_retry_after(retry_after) if status in RETRY_AFTER_STATUSES else None
    return DeliveryOutcome(status=status, error=f"HTTP {status}", retry_after_s=retry_after_s)


def parse_retry_after(retry_after: str | None) -> float | None:
    """Return the seconds that either form of the Retry-After header asks for; None when it has another form."""
    if retry_after is None:
        return None
    try:
        if retry_after.strip().isdecimal():
            seconds = float(retry_after)
        else:
            until = parsedate_to_datetime(retry_after)
            seconds = (until.replace(tzinfo=until.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
