"""One HTTP POST to an address that a client chose: pinned to what was checked, bounded in time and size, never redirected."""

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

from jobs.webhooks.deliveries import Outcome
from jobs.webhooks.egress import EgressPolicy, EgressRefused, Target

MOST_READ_BYTES = 4096  # of an answer's body, which nobody looks at
PIECE_BYTES = 4096  # written in one go
MAX_ERROR_LENGTH = 200
BUSY = (429, 503)  # statuses with which a receiver may ask for a rest


@dataclass(frozen=True)
class Deadline:
    at: float  # of time.monotonic()

    def left_s(self) -> float:
        """Raises httpcore2.TimeoutException when it has passed."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpcore2.TimeoutException
        return left


class BoundedStream(httpcore2.NetworkStream):
    """A connection whose every operation ends by one deadline: a receiver that sends a byte now and then gains nothing."""

    def __init__(self, stream: httpcore2.NetworkStream, deadline: Deadline) -> None:
        self.stream = stream
        self.deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self.stream.read(max_bytes, self.deadline.left_s())

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), PIECE_BYTES):
            self.stream.write(buffer[start : start + PIECE_BYTES], self.deadline.left_s())

    def close(self) -> None:
        self.stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore2.NetworkStream:
        secured = self.stream.start_tls(ssl_context, server_hostname, self.deadline.left_s())
        return BoundedStream(secured, self.deadline)

    def get_extra_info(self, info: str) -> Any:
        return self.stream.get_extra_info(info)


class PinnedBackend(httpcore2.NetworkBackend):
    """Connects to the addresses it has checked. TLS and the Host header go by the name all the same."""

    def __init__(self, destinations: EgressPolicy, deadline: Deadline) -> None:
        self.destinations = destinations
        self.deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        """Raises EgressRefused, httpcore2.ConnectError, httpcore2.TimeoutException."""
        addresses = self.destinations.addresses(host, port, self.deadline.left_s())
        for others, address in reversed(list(enumerate(reversed(addresses)))):
            share_s = self.deadline.left_s() / (1 + others)  # one address that is silent must leave time for the others
            try:
                stream = httpcore2.SyncBackend().connect_tcp(address, port, share_s, None, socket_options)
                return BoundedStream(stream, self.deadline)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if others == 0:
                    raise
        raise httpcore2.ConnectError("there is no address")


@dataclass(frozen=True, kw_only=True)
class WebhookSender:
    destinations: EgressPolicy
    timeout_s: float  # from the look-up of the host to the answer
    tls: ssl.SSLContext = field(default_factory=httpcore2.default_ssl_context)

    def post(self, url: str, headers: dict[str, str], body: bytes) -> Outcome:
        """Send it; what goes wrong on the way is an outcome too."""
        try:
            return self.send(self.destinations.parse(url), headers, body)
        except EgressRefused as error:
            return Outcome(error=str(error)[:MAX_ERROR_LENGTH])
        except httpcore2.TimeoutException:
            return Outcome(error=f"no answer within {self.timeout_s:g} s")
        except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
            return Outcome(error=f"{type(error).__name__}: {error}"[:MAX_ERROR_LENGTH])

    def send(self, target: Target, headers: dict[str, str], body: bytes) -> Outcome:
        backend = PinnedBackend(self.destinations, Deadline(time.monotonic() + self.timeout_s))
        url = httpcore2.URL(
            scheme=target.scheme.encode(), host=target.host.encode(), port=target.port, target=target.path.encode()
        )
        with (
            httpcore2.ConnectionPool(ssl_context=self.tls, network_backend=backend) as pool,
            pool.stream("POST", url, headers=[("Host", target.authority), *headers.items()], content=body) as answer,
        ):
            hear_out(answer)
            return outcome_of(answer)


def hear_out(answer: httpcore2.Response) -> None:
    """Read some of the body: a receiver that is cut off at once may take it for a failure. Its status is said already."""
    read = 0
    with suppress(httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        for chunk in answer.iter_stream():
            read += len(chunk)
            if read > MOST_READ_BYTES:
                break


def outcome_of(answer: httpcore2.Response) -> Outcome:
    status = answer.status
    if 200 <= status < 300:
        return Outcome(status=status)
    if 300 <= status < 400:
        return Outcome(status=status, error=f"HTTP {status}: redirects are not followed")
    asked = {name.lower(): value.decode("latin-1") for name, value in answer.headers}.get(b"retry-after")
    return Outcome(status=status, error=f"HTTP {status}", retry_after_s=rest_asked_for(asked) if status in BUSY else None)


def rest_asked_for(retry_after: str | None) -> float | None:
    """Seconds, from either form of the Retry-After header; None when it has neither."""
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
