"""Where webhooks may go: to public addresses alone, besides the networks that the operator allows.

A name is looked up anew for every delivery, and the socket goes to an address that was checked: a name that turns to a private
address between two look-ups (DNS rebinding) gains nothing.
"""

import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import SplitResult, urlsplit

Network = IPv4Network | IPv6Network
Resolve = Callable[[str, int], Sequence[str]]  # host and port to addresses; raises OSError, UnicodeError

MAX_URL_LENGTH = 2048
LOOK_UP_LIMIT_S = 5.0
PRINTABLE = re.compile(r"[!-\[\]-~]+")  # ASCII without spaces, and without the backslash that parsers take for a slash
PORTS = {"https": 443, "http": 80}
GLOBAL_UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")
SHARED = IPv4Network("100.64.0.0/10")  # of carriers; Pythons differ about whether it is private


class EgressRefused(Exception):
    """Nothing is sent there; the message says why, without addresses: who may not reach a network may not map it either."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A URL's parts, as the one parser understood them that everybody uses here."""

    scheme: str
    authority: str  # of the Host header
    host: str  # a name, or an address without brackets
    port: int
    path: str  # with the query


def ask_system(host: str, port: int) -> list[str]:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True, kw_only=True)
class EgressPolicy:
    allow_http: bool = False
    allowed_networks: Sequence[Network] = ()  # besides what is public
    resolve: Resolve = ask_system

    def check(self, url: str) -> None:
        """Raises EgressRefused."""
        target = self.parse(url)
        self.addresses(target.host, target.port, LOOK_UP_LIMIT_S)

    def parse(self, url: str) -> Target:
        """Raises EgressRefused."""
        if len(url) > MAX_URL_LENGTH or not PRINTABLE.fullmatch(url):
            raise EgressRefused(f"must be at most {MAX_URL_LENGTH} printable ASCII characters without spaces or backslashes")
        try:
            parts, port = urlsplit(url), urlsplit(url).port
        except ValueError as error:
            raise EgressRefused("is not a URL") from error
        if parts.scheme not in PORTS or (parts.scheme == "http" and not self.allow_http):
            raise EgressRefused("must begin with https://" + (" or http://" if self.allow_http else ""))
        if "@" in parts.netloc or "#" in url:
            raise EgressRefused("may have neither user name, nor password, nor fragment")
        if not parts.hostname or port == 0:
            raise EgressRefused("has no host that could be connected to")
        return Target(
            scheme=parts.scheme,
            authority=parts.netloc,
            host=parts.hostname,
            port=port or PORTS[parts.scheme],
            path=path_of(parts),
        )

    def addresses(self, host: str, port: int, limit_s: float) -> list[str]:
        """The addresses of a host, looked up within limit_s. Raises EgressRefused: there is none, or one is not allowed."""
        found = self.look_up(host, port, min(limit_s, LOOK_UP_LIMIT_S))
        if not found or not all(self.allows(address) for address in found):
            raise EgressRefused(f"{host} is not at a public address")
        return list(found)

    def allows(self, text: str) -> bool:
        try:
            address = embedded(ip_address(text))
        except ValueError:
            return False
        return any(address in network for network in self.allowed_networks) or is_public(address)

    def look_up(self, host: str, port: int, limit_s: float) -> Sequence[str]:
        """The system's resolver knows no time limit, so it is asked in a thread that can be left behind."""
        answers: SimpleQueue[Sequence[str] | Exception] = SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self.resolve(host, port))
            except (OSError, UnicodeError) as error:
                answers.put(error)

        Thread(target=ask, name="look up", daemon=True).start()
        began = time.monotonic()
        try:
            answer = answers.get(timeout=max(0.0, limit_s))
        except Empty as error:
            raise EgressRefused(f"{host} was not found within {time.monotonic() - began:.1f} s") from error
        if isinstance(answer, Exception):
            raise EgressRefused(f"there is no host {host}") from answer
        return answer


def path_of(parts: SplitResult) -> str:
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def embedded(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """The IPv4 address that an IPv6 one leads to: mapped, 6to4, or through NAT64; else the address itself."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not (address.version == 4 and address in SHARED)
