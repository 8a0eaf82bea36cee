"""HTTP itself: framings, headers, methods, paths."""

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import JSON, Attacker, Request
from tests.abuse.documents import JOB, as_json

CHUNKED = {"Content-Type": JSON, "Transfer-Encoding": "chunked"}


def chunked(attacker: Attacker, *chunks: bytes, end: bytes = b"0\r\n\r\n", key: str | None = "") -> Request:
    """Return a submission whose body is chunks, given with their heads."""
    head = attacker.request("GET", "/v1/jobs", key=key, headers=CHUNKED).head.replace(b"GET", b"POST", 1)
    return Request(head, b"".join(chunks) + end)


@attack()
def chunks_of_one_byte(attacker: Attacker) -> Strike:
    """Five million bytes for a megabyte: each chunk is an event of the parser's."""
    body = b'{"model":"' + b"x" * 10**6 + b'"}'
    return attacker.flood(chunked(attacker, b"".join(b"1\r\n%c\r\n" % byte for byte in body)))


@attack()
def chunks_of_one_byte_without_a_key(attacker: Attacker) -> Strike:
    return attacker.flood(chunked(attacker, b"1\r\n[\r\n" * 10**6, key=None))


@attack()
def chunk_extensions(attacker: Attacker) -> Strike:
    """Extensions that are longer than what they extend, and trailers without end."""
    long = chunked(attacker, b"1;" + b"a=b;" * 5_000_000 + b"\r\n{\r\n")
    many = chunked(attacker, b"1;a=b\r\n{\r\n" * 500_000)
    trailers = chunked(attacker, b"1\r\n{\r\n", end=b"0\r\n" + b"X-A: b\r\n" * 10**6 + b"\r\n")
    return attacker.flood(long, many, trailers)


@attack()
def chunks_that_never_end(attacker: Attacker) -> Strike:
    return attacker.trickle(chunked(attacker, b"1\r\n[\r\n" * 10**5), part_bytes=6, pause_s=0.01)


@attack()
def framings_that_contradict(attacker: Attacker) -> Strike:
    """Length and chunks, two lengths, negative and huge lengths, lines without returns."""
    body = as_json(JOB)
    headers: list[dict[str, str]] = [
        {"Content-Length": "5", "Transfer-Encoding": "chunked"}, {"Content-Length": "-1"}, {"Content-Length": "9" * 5000},
        {"Content-Length": "1, 2"}, {"Content-Length": "+5"}, {"Transfer-Encoding": "gzip, chunked"}, {"Transfer-Encoding": "x"},
        {"content-length": "3", "Content-Length": "4"}, {"Upgrade": "websocket", "Connection": "Upgrade"}, {"Host": ""},
        {"Upgrade": "h2c", "Connection": "Upgrade, HTTP2-Settings", "HTTP2-Settings": "AA"}, {"Host": "a" * 60_000},
    ]  # fmt: skip
    return attacker.flood(*(attacker.request("POST", "/v1/jobs", body, headers=fields) for fields in headers))


@attack()
def bytes_that_are_no_http(attacker: Attacker) -> Strike:
    data = (b"\x16\x03\x01\x02\x00\x01\x00" + bytes(500), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0" * 100_000, b"\r\n" * 100_000)
    data += (b"GET " + b"/" * 10**6, b"SSH-2.0-x\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET\x00/ HTTP/1.1\r\n\r\n", b"\xff" * 10**6)
    return attacker.flood(*map(Request, data))


@attack()
def many_headers(attacker: Attacker) -> Strike:
    """Ten thousand headers, and a single one of a megabyte."""
    many = {f"X-{n}": "a" for n in range(10_000)}
    within = {f"X-{n}": "" for n in range(4000)}
    fields = (many, within, {"X-A": "a" * 10**6}, {"Cookie": "a=b;" * 10_000}, {"Accept": "a/b;q=0.1," * 5000})
    return attacker.flood(*(attacker.request("GET", path, headers=h) for h in fields for path in ("/v1/jobs", "/healthz")))


@attack()
def long_addresses(attacker: Attacker) -> Strike:
    paths = ("/" + "a" * 60_000, "/v1/jobs/" + "%41" * 20_000, "/v1/jobs?" + "a" * 60_000, "/" * 60_000, "/v1" + "/.." * 15_000)
    return attacker.flood(*(attacker.request("GET", path) for path in paths))


@attack()
def methods_that_routes_do_not_have(attacker: Attacker) -> Strike:
    methods = ("HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "A" * 1000, "get", "DELETE", "PATCH")
    paths = ("/healthz", "/v1/jobs", "/openapi.json", "*", "http://x/v1/jobs", "/v1/nothing")
    return attacker.flood(*(attacker.request(method, path, key=None) for method in methods for path in paths))


@attack()
def paths_that_do_not_exist(attacker: Attacker) -> Strike:
    paths = (
        "/",
        "/v1",
        "/v1/",
        "/v2/jobs",
        "/v1/jobs/",
        "//v1/jobs",
        "/v1/jobs%2f",
        "/metrics",
        "/.env",
        "/v1/jobs;x=1",
        "/favicon.ico",
    )
    return attacker.flood(*(attacker.request("GET", path, key=None) for path in paths))


@attack()
def health_checks_from_all_sides(attacker: Attacker) -> Strike:
    return attacker.flood(*(attacker.request("GET", path, key=None) for path in ("/healthz", "/readyz", "/healthz?x=1")))
