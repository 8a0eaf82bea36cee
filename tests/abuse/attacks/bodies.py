"""JSON bodies: large, nested, slow, and with values that are hard to hold."""

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import Attacker
from tests.abuse.documents import BODY_BYTES, JOB, POST_ROUTES, arrays, as_json, largest_job, million_keys, repeated

WITH_JSON = ("/v1/jobs", "/v1/jobs:validate", "/v1/webhooks", "/v1/uploads/presigned")


def post_everywhere(attacker: Attacker, body: bytes, *, key: str | None = "", routes: tuple[str, ...] = WITH_JSON) -> Strike:
    """Send a body to one route after the other."""
    return attacker.flood(*(attacker.request("POST", path, body, key=key) for path in routes))


@attack("1", connections=4, small=True)
def four_of_arrays_without_a_key(attacker: Attacker) -> Strike:
    """Send 29 MB of nested arrays to every POST route, without a key, four at once."""
    return post_everywhere(attacker, arrays(), key=None, routes=POST_ROUTES)


@attack("1", at_least_s=8)
def arrays_without_a_key(attacker: Attacker) -> Strike:
    """The same from everywhere at once."""
    return post_everywhere(attacker, arrays(), key=None, routes=POST_ROUTES)


@attack("1", at_least_s=8)
def arrays_with_a_wrong_key(attacker: Attacker) -> Strike:
    return post_everywhere(attacker, arrays(), key="dq_0123456789abcdef_" + "A" * 43, routes=POST_ROUTES)


@attack("1", connections=4)
def four_of_arrays_with_a_key(attacker: Attacker) -> Strike:
    return post_everywhere(attacker, arrays())


@attack("1", at_least_s=8)
def arrays_with_a_key(attacker: Attacker) -> Strike:
    return post_everywhere(attacker, arrays())


@attack("1", at_least_s=8)
def arrays_with_many_keys(attacker: Attacker) -> Strike:
    body = arrays()
    return attacker.flood(*(r for path in WITH_JSON for r in attacker.with_each_key("POST", path, body)))


@attack("1")
def arrays_to_routes_that_change_something(attacker: Attacker) -> Strike:
    """PUT and PATCH declare bodies too; without a key."""
    body, unknown = arrays(), "00000000-0000-4000-8000-000000000001"
    routes = (("PUT", f"/v1/jobs/{unknown}"), ("PATCH", f"/v1/webhooks/{unknown}"), ("POST", f"/v1/jobs/{unknown}/stop"))
    return attacker.flood(*(attacker.request(method, path, body, key=None) for method, path in routes))


@attack()
def arrays_of_a_megabyte(attacker: Attacker) -> Strike:
    """Stay within a limit of bytes: what counts is how many values there are."""
    body = repeated(b"[],", begin=b'{"model":"idle","metadata":{"a":[', end=b"[]]}}", size=990_000)
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs", body))


@attack()
def deep_nesting(attacker: Attacker) -> Strike:
    """Nest arrays and objects deeper than any parser recurses."""
    deep = [b"[" * 10**6, b'{"a":' * 10**5, b'{"metadata":{"a":' + b"[" * 400_000 + b"]" * 400_000 + b"}}"]
    return attacker.flood(*(attacker.request("POST", path, body) for path in WITH_JSON for body in deep))


@attack()
def deep_metadata_that_is_legal(attacker: Attacker) -> Strike:
    """Nest metadata as deep as a parser lets it be; it is stored, read and answered again."""
    bodies = [as_json(JOB)[:-1] + b',"metadata":{"a":' + b"[" * depth + b"]" * depth + b"}}" for depth in (50, 190, 900, 7000)]
    return attacker.flood(
        *(attacker.request("POST", path, body) for body in bodies for path in ("/v1/jobs", "/v1/jobs:validate"))
    )


@attack()
def a_million_unknown_fields(attacker: Attacker) -> Strike:
    """Each unknown field is an error of its own."""
    return post_everywhere(attacker, million_keys())


@attack()
def unknown_fields_within_a_megabyte(attacker: Attacker) -> Strike:
    body = b'{"model":"idle",' + b",".join(b'"%d":0' % number for number in range(90_000)) + b"}"
    return attacker.flood(*(r for path in WITH_JSON for r in attacker.with_each_key("POST", path, body)))


@attack()
def a_million_equal_keys(attacker: Attacker) -> Strike:
    return post_everywhere(attacker, repeated(b'"model":"idle",', begin=b"{", end=b'"model":"idle"}'))


@attack()
def unknown_fields_with_long_names(attacker: Attacker) -> Strike:
    """Let the answer repeat the names."""
    fields = b",".join(b'"%s%d":0' % (b"n" * 9000, number) for number in range(100))
    return post_everywhere(attacker, b'{"model":"idle",' + fields + b"}")


@attack(small=True)
def huge_numbers(attacker: Attacker) -> Strike:
    """An integer of 100,000 digits takes its parser quadratic time; 1e999 is infinite; NaN is no JSON."""
    numbers = (
        b"9" * 100_000,
        b"-" + b"9" * 4300,
        b"1e999",
        b"NaN",
        b"-Infinity",
        b"1e-400",
        b"0." + b"3" * 10**6,
        b"1E+99999999999",
    )
    bodies = [b'{"model":"idle","source":{"seed":%s},"metadata":{"a":%s}}' % (number, number) for number in numbers]
    sizes = [b'{"url":%s,"sha256":"x","size_bytes":%s}' % (number, number) for number in numbers]
    return attacker.flood(*(attacker.request("POST", path, body) for path in WITH_JSON for body in bodies + sizes))


@attack()
def numbers_within_a_megabyte(attacker: Attacker) -> Strike:
    """Hundreds of integers of the longest length that Python reads."""
    body = b'{"model":"idle","metadata":{"a":[' + b",".join([b"7" * 4300] * 220) + b"]}}"
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs", body))


@attack()
def one_huge_string(attacker: Attacker) -> Strike:
    body = b'{"model":"' + b"x" * (BODY_BYTES - 100) + b'"}'
    return post_everywhere(attacker, body)


@attack()
def strings_of_escapes(attacker: Attacker) -> Strike:
    """Single surrogates and NULs in a large string."""
    return post_everywhere(attacker, repeated(b"\\ud800\\u0000", begin=b'{"model":"', end=b'"}'))


@attack()
def bytes_that_are_no_text(attacker: Attacker) -> Strike:
    return post_everywhere(attacker, b"\xff\xfe\xfa" * (BODY_BYTES // 3))


@attack()
def other_encodings_of_json(attacker: Attacker) -> Strike:
    """Send JSON as UTF-16 and UTF-32, which Python's parser recognizes and decodes."""
    text = '{"model":"idle","metadata":[' + "[]," * 10**6 + "[]]}"
    bodies = [text.encode(encoding) for encoding in ("utf-16", "utf-16-be", "utf-32", "utf-8-sig")]
    return attacker.flood(*(attacker.request("POST", path, body) for body in bodies for path in WITH_JSON))


@attack()
def content_types_that_nobody_expects(attacker: Attacker) -> Strike:
    body = arrays()
    kinds = ("text/plain", "application/xml", "application/problem+json", "application/x-www-form-urlencoded", "a/b" * 1000)
    kinds += ("application/json; charset=punycode", "application/json; charset=utf-7", "", "/", "multipart/mixed; boundary=b")
    return attacker.flood(*(attacker.request("POST", path, body, kind=kind) for kind in kinds for path in WITH_JSON))


@attack()
def bodies_that_say_they_are_compressed(attacker: Attacker) -> Strike:
    """A service that unpacks 29 MB of gzip gets 29 GB."""
    import gzip

    packed = gzip.compress(b"[" * 10**8)
    headers = [{"Content-Encoding": name} for name in ("gzip", "deflate", "br", "zstd", "gzip, gzip")]
    return attacker.flood(*(attacker.request("POST", path, packed, headers=h) for path in POST_ROUTES for h in headers))


@attack(small=True)
def the_largest_jobs(attacker: Attacker) -> Strike:
    """Submit and validate what the contract lets in: 64 points, 64 polygons of 256 points."""
    body = largest_job()
    return attacker.flood(*(attacker.request("POST", path, body) for path in ("/v1/jobs", "/v1/jobs:validate")))


@attack()
def the_largest_jobs_with_many_keys(attacker: Attacker) -> Strike:
    body = largest_job("slow")
    return attacker.flood(*attacker.with_each_key("POST", "/v1/jobs:validate", body))


@attack()
def the_largest_jobs_with_an_idempotency_key(attacker: Attacker) -> Strike:
    """The fingerprint sorts and hashes the whole document; the answer is stored beside it."""
    body = largest_job()
    return attacker.flood(*(attacker.request("POST", "/v1/jobs", body, headers={"Idempotency-Key": f"k{n}"}) for n in range(30)))


@attack()
def more_points_than_there_may_be(attacker: Attacker) -> Strike:
    """Hundreds of thousands of items of which each is wrong in several ways."""
    body = repeated(b'{"handle":[1,"a"],"x":[]},', begin=b'{"model":"idle","source":{},"points":[', end=b"{}]}")
    shapes = repeated(b'{"polygon":[[1,2],[3]]},', begin=b'{"model":"idle","source":{},"movable":{"shapes":[', end=b"{}]}}")
    hooks = repeated(b'"job.succeeded",', begin=b'{"url":"https://example.com","events":[', end=b'"x"]}')
    requests = [attacker.request("POST", path, b) for b in (body, shapes) for path in ("/v1/jobs", "/v1/jobs:validate")]
    return attacker.flood(*requests, attacker.request("POST", "/v1/webhooks", hooks))


@attack("12")
def slow_bodies(attacker: Attacker) -> Strike:
    """Send a job a byte at a time."""
    return attacker.trickle(attacker.request("POST", "/v1/jobs", as_json(JOB)))


@attack("12")
def slow_bodies_without_a_key(attacker: Attacker) -> Strike:
    return attacker.trickle(attacker.request("POST", "/v1/webhooks", b'{"url":"https://example.com"}' * 100, key=None))


@attack()
def slow_large_bodies(attacker: Attacker) -> Strike:
    """Send 29 MB in parts, so that sixty of them lie in memory at once, none of them whole."""
    return attacker.trickle(attacker.request("POST", "/v1/uploads", bytes(BODY_BYTES)), part_bytes=2**18, pause_s=0.02)


@attack()
def bodies_that_break_off(attacker: Attacker) -> Strike:
    body = arrays()
    return attacker.aborted(*(attacker.request("POST", path, body) for path in POST_ROUTES), keep=0.7)


@attack()
def bodies_that_never_come(attacker: Attacker) -> Strike:
    """Announce a body, with and without waiting for 100 Continue, and send nothing of it."""
    request = attacker.request("POST", "/v1/jobs", headers={"Content-Length": "1000000", "Expect": "100-continue"})
    return attacker.held(request.head)
