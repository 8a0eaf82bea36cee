import socket
import time
from ipaddress import ip_network

import pytest

from jobs.webhooks.egress import HOST_REFUSED, EgressPolicy, EgressRefused

PRIVATE = [
    "127.0.0.1", "127.255.0.3", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254", "100.64.0.1", "100.127.255.255",
    "0.0.0.1", "224.0.0.1", "239.1.2.3", "255.255.255.255", "192.0.2.1", "198.18.0.1", "240.0.0.1",
    "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:100.64.0.1", "::127.0.0.1", "fc00::1", "fd12::1", "fe80::1",
    "fe80::1%1", "fec0::1", "ff02::1", "2001:db8::1", "2002:7f00:1::", "2002:a00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1",
    "64:ff9b:1::a00:1", "2001:0:1::1", "not an address", "192.0.0.8", "192.88.99.1", "3fff::1",
]  # fmt: skip
INSIDE_CLOUDS = [
    "168.63.129.16", "::ffff:168.63.129.16", "64:ff9b::a83f:8110", "2002:a83f:8110::1",  # Azure, in each of its forms
    "100.100.100.200", "192.0.0.192", "169.254.169.254", "169.254.170.2", "fd00:ec2::254", "fd20:ce::254",
    "161.26.0.10", "166.8.0.1", "166.11.255.255", "199.36.153.5", "199.36.153.9", "2600:2d00:2:1000::1", "2600:2d00:2:2000::1",
    "183.60.83.19", "183.60.82.98",
]  # fmt: skip
PUBLIC = [
    "8.8.8.8",
    "168.63.129.17",
    "161.27.0.1",
    "166.12.0.1",
    "199.36.153.12",
    "93.184.215.14",
    "100.63.255.255",
    "100.128.0.1",
    "2606:4700::1111",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
]


def at(*addresses):
    """Where every host is at these addresses."""
    return EgressPolicy(resolve=lambda host, port: addresses)


@pytest.mark.parametrize("address", PRIVATE + INSIDE_CLOUDS)
def test_what_is_not_public_is_refused(address):
    with pytest.raises(EgressRefused, match=HOST_REFUSED):
        at(address).check("https://hooks.example/")


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_not(address):
    assert at(address).resolve_allowed("hooks.example", 443, 1) == [address]


def test_all_the_addresses_of_a_host_must_be_public():
    with pytest.raises(EgressRefused, match=HOST_REFUSED):
        at("8.8.8.8", "10.0.0.1").check("https://hooks.example/")
    with pytest.raises(EgressRefused, match=HOST_REFUSED):
        at().check("https://hooks.example/")


def test_operators_allow_networks():
    inner = EgressPolicy(allowed_networks=[ip_network("10.1.0.0/16")], resolve=lambda host, port: [host])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "8.8.8.8"):
        assert inner.resolve_allowed(address, 443, 1) == [address]
    with pytest.raises(EgressRefused):
        inner.resolve_allowed("10.2.0.1", 443, 1)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost"]
)
def test_every_way_of_writing_the_loopback_is_refused(host):
    """With the system's resolver, which reads them all."""
    with pytest.raises(EgressRefused, match=HOST_REFUSED):
        EgressPolicy().check(f"https://{host}/hook")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://hooks.example/", "must begin with https://"),
        ("ftp://hooks.example/", "must begin with https://"),
        ("file:///etc/passwd", "must begin with https://"),
        ("hooks.example", "must begin with https://"),
        ("https://user@hooks.example/", "user name"),
        ("https://user:word@hooks.example/", "user name"),
        ("https://8.8.8.8#@hooks.example/", "user name"),
        ("https://hooks.example/#part", "fragment"),
        ("https:///hook", "no host"),
        ("https://hooks.example:0/", "no host"),
        ("https://hooks.example:70000/", "is not a URL"),
        ("https://[::1/", "is not a URL"),
        ("https://hooks.example\\@evil.example/", "printable ASCII"),
        ("https://hooks.example/\r\nHost: evil", "printable ASCII"),
        ("https://h\u00f6oks.example/", "printable ASCII"),
        ("https://hooks.example/" + "x" * 2048, "at most 2048"),
    ],
)
def test_what_is_no_plain_https_url_is_refused(url, why):
    with pytest.raises(EgressRefused, match=why):
        at("8.8.8.8").check(url)


def test_a_url_is_taken_apart_once():
    target = EgressPolicy().parse("https://Hooks.Example:8443/a/b?c=d&e")
    assert (target.scheme, target.host, target.port, target.authority, target.path) == (
        "https", "hooks.example", 8443, "Hooks.Example:8443", "/a/b?c=d&e",
    )  # fmt: skip
    target = EgressPolicy(allow_http=True).parse("http://[2606:4700::1111]?x")
    assert (target.host, target.port, target.authority, target.path) == ("2606:4700::1111", 80, "[2606:4700::1111]", "/?x")


def test_a_resolver_that_does_not_answer_is_left_behind():
    began = time.monotonic()
    with pytest.raises(EgressRefused, match=HOST_REFUSED):
        EgressPolicy(resolve=lambda host, port: time.sleep(2) or ["8.8.8.8"]).resolve_allowed("slow.example", 443, 0.1)
    assert time.monotonic() - began < 1


UNKNOWN = socket.gaierror(-2, "Name or service not known")
REFUSALS = {
    "unknown": UNKNOWN, "for now": socket.gaierror(-3, "Temporary failure"), "no name": UnicodeError("label too long"),
    "silent": None, "nowhere": [], "inside": ["10.0.0.1"], "in a cloud": ["168.63.129.16"], "inside too": ["8.8.8.8", "10.0.0.1"],
}  # fmt: skip


def test_a_refusal_does_not_tell_whether_a_host_is_unknown_silent_or_inside(caplog):
    def resolve(host, port):
        if REFUSALS[host] is None:
            time.sleep(1)
        if isinstance(REFUSALS[host], Exception):
            raise REFUSALS[host]
        return REFUSALS[host]

    def refusal(host):
        with pytest.raises(EgressRefused) as refused:
            EgressPolicy(resolve=resolve).resolve_allowed(host, 443, 0.05)
        return str(refused.value)

    with caplog.at_level("INFO"):
        assert {refusal(host) for host in REFUSALS} == {HOST_REFUSED}
    assert [record.args[0] for record in caplog.records] == list(REFUSALS)  # operators read why
    assert "10.0.0.1" in caplog.text
