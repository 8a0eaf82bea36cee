"""The egress policy of webhooks: public addresses only, and the networks that the operator allows.

A name is looked up again for every delivery, and the socket connects to an address that was checked, so a name that changes to a
private address between two look-ups (DNS rebinding) gains nothing.
"""

import logging
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Self
from urllib.parse import SplitResult, urlsplit

from jobs.settings import Network, Settings

Resolver = Callable[[str, int], Sequence[str]]  # host and port to addresses; raises OSError, UnicodeError

MAX_URL_LENGTH = 2048
MAX_LOOKUP_S = 5.0
PRINTABLE = re.compile(r"[!-\[\]-~]+")  # ASCII without spaces, and without the backslash that parsers take for a slash
PORTS = {"https": 443, "http": 80}
GLOBAL_UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")
HOST_REFUSED = "the host is not found at a public address"  # whether it is unknown, silent or inside
# What Python versions differ about.
SPECIAL_PURPOSE = (
    "100.64.0.0/10",  # shared address space, RFC 6598; Alibaba's metadata: 100.100.100.200
    "192.0.0.0/24",  # protocol assignments, RFC 6890; Oracle's metadata in its Classic cloud: 192.0.0.192
    "192.88.99.0/24",  # relays of 6to4, RFC 7526: what they are sent is unpacked elsewhere
    "3fff::/20",  # documentation, RFC 9637
)
# What answers inside a cloud only, though the addresses are public ones. The metadata services of the others need no line here:
# 169.254.0.0/16 (AWS, Azure, Google, Oracle, Tencent, ...), fd00:ec2::254 (AWS) and fd20:ce::254 (Google) are not public.
INSIDE_CLOUDS = (
    "168.63.129.16/32",  # Azure's WireServer: learn.microsoft.com/azure/virtual-network/what-is-ip-address-168-63-129-16
    "161.26.0.0/16",  # IBM's services for its machines: cloud.ibm.com/docs/vpc?topic=vpc-service-endpoints-for-vpc
    "166.8.0.0/14",  # IBM's private endpoints of cloud services: the same page
    "199.36.153.4/30",  # Google's restricted.googleapis.com: cloud.google.com/vpc/docs/configure-private-google-access
    "199.36.153.8/30",  # Google's private.googleapis.com: the same page
    "2600:2d00:2:1000::/64",  # restricted.googleapis.com
    "2600:2d00:2:2000::/64",  # private.googleapis.com
    "183.60.83.19/32",  # Tencent's resolvers for its machines: cloud.tencent.com/document/product/213/5225
    "183.60.82.98/32",
)
NOT_PUBLIC = tuple(map(ip_network, SPECIAL_PURPOSE + INSIDE_CLOUDS))
logger = logging.getLogger(__name__)


class EgressRefused(Exception):
    """Nothing may be sent to a URL. The message tells nothing about the network; why a host is refused, the log says."""


@dataclass(frozen=True, kw_only=True)
class ParsedUrl:
    """The parts of a URL. Only this parser's reading is used, so that a check and a request never differ."""

    scheme: str
    authority: str  # of the Host header
    host: str  # a name, or an address without brackets
    port: int
    path: str  # with the query


def resolve_with_system(host: str, port: int) -> list[str]:
    """Return a host's addresses, without doubles, in the order of the system's resolver."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True, kw_only=True)
class EgressPolicy:
    """The rules for the URLs and addresses that webhooks may be sent to."""

    allow_http: bool = False
    allowed_networks: Sequence[Network] = ()  # besides what is public
    resolve: Resolver = resolve_with_system

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Return the policy of the settings."""
        return cls(allow_http=settings.webhook_allow_http, allowed_networks=settings.webhook_allowed_networks)

    def check(self, url: str) -> None:
        """Raise EgressRefused when nothing may be sent to the URL now."""
        parsed = self.parse(url)
        self.resolve_allowed(parsed.host, parsed.port, MAX_LOOKUP_S)

    def parse(self, url: str) -> ParsedUrl:
        """Split a URL into its parts. Raises EgressRefused when its form is not allowed."""
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
        return ParsedUrl(
            scheme=parts.scheme,
            authority=parts.netloc,
            host=parts.hostname,
            port=port or PORTS[parts.scheme],
            path=request_target(parts),
        )

    def resolve_allowed(self, host: str, port: int, limit_s: float) -> list[str]:
        """Look up a host's addresses within limit_s seconds.

        Raises EgressRefused when there is none, or one is not allowed: with one message for all, or names inside could be mapped.
        """
        try:
            found = list(self.resolve_within(host, port, min(limit_s, MAX_LOOKUP_S)))
        except (OSError, UnicodeError) as error:
            logger.info("nothing is sent to %s: %s", host, error)
            raise EgressRefused(HOST_REFUSED) from error
        if not found or not all(self.allows(address) for address in found):
            logger.info("nothing is sent to %s, which is at %s", host, ", ".join(found) or "no address")
            raise EgressRefused(HOST_REFUSED)
        return found

    def allows(self, text: str) -> bool:
        """Return whether an address is public or in an allowed network."""
        try:
            address = unwrap_ipv4(ip_address(text))
        except ValueError:
            return False
        return any(address in network for network in self.allowed_networks) or is_public(address)

    def resolve_within(self, host: str, port: int, limit_s: float) -> Sequence[str]:
        """Look up a host in a thread that is left behind at the limit, because the system's resolver has none.

        Raises OSError (TimeoutError at the limit), UnicodeError.
        """
        answers: SimpleQueue[Sequence[str] | Exception] = SimpleQueue()

        def ask() -> None:
            try:
                answers.put(self.resolve(host, port))
            except (OSError, UnicodeError) as error:
                answers.put(error)

        Thread(target=ask, name="look up", daemon=True).start()
        try:
            answer = answers.get(timeout=max(0.0, limit_s))
        except Empty as error:
            raise TimeoutError(f"no address within {limit_s:.1f} s") from error
        if isinstance(answer, Exception):
            raise answer
        return answer


def request_target(parts: SplitResult) -> str:
    """Return the path with the query, as the request line has it."""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def unwrap_ipv4(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """Return the IPv4 address inside a mapped, 6to4 or NAT64 address; any other address as it is."""
    if isinstance(address, IPv4Address):
        return address
    if address in NAT64:
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def is_public(address: IPv4Address | IPv6Address) -> bool:
    """Return whether an address can be reached on the public Internet."""
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not any(address in network for network in NOT_PUBLIC)
