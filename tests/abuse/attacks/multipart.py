"""Multipart bodies: charsets, thousands of parts, huge headers, boundaries."""

import encodings.aliases

from tests.abuse.attack import Strike, attack
from tests.abuse.attacker import Attacker, Request
from tests.abuse.documents import BODY_BYTES, JOB, as_json, form_field, multipart, picture

FORM = "multipart/form-data; boundary=b"
ROUTES = ("/v1/jobs", "/v1/jobs:validate")
CODECS = sorted(set(encodings.aliases.aliases.values()) | {"idna", "undefined", "unicode_escape", "raw_unicode_escape", "oem"})
JOB_FIELD = form_field("job", as_json(JOB))


def forms(attacker: Attacker, body: bytes, kind: str = FORM) -> list[Request]:
    return [attacker.request("POST", path, body, kind=kind) for path in ROUTES]


def charset_flood(attacker: Attacker, charsets: list[str], field: bytes) -> Strike:
    """Send a form whose text is to be read by codecs of the client's choice."""
    body = multipart([form_field("job", field), form_field("image", field)])
    kinds = [f"multipart/form-data; boundary=b; charset={charset}" for charset in charsets]
    return attacker.flood(*(request for kind in kinds for request in forms(attacker, body, kind)))


@attack("3", connections=4, small=True)
def charset_punycode(attacker: Attacker) -> Strike:
    """A megabyte of punycode takes its decoder quadratic time."""
    return charset_flood(attacker, ["punycode"], b"a" * 10**6)


@attack("3")
def charsets_that_are_no_text(attacker: Attacker) -> Strike:
    return charset_flood(
        attacker, ["undefined", "utf-7", "utf-16", "idna", "nobody", "zlib", "rot13", '"', "\x80", "a" * 5000], b"xn--a-"
    )


@attack("3")
def a_hundred_charsets(attacker: Attacker) -> Strike:
    return charset_flood(attacker, CODECS, b"xn--" + b"a+-&%\\u" * 30_000)


@attack("3")
def charset_of_each_part(attacker: Attacker) -> Strike:
    """A part may have a charset of its own, and a form a field _charset_."""
    named = [
        (f'Content-Disposition: form-data; name="job"\r\nContent-Type: text/plain; charset={name}', b"a" * 300_000)
        for name in ("punycode", "undefined", "idna", "utf-7")
    ]
    bodies = [multipart([form_field("_charset_", b"punycode"), part]) for part in named]
    return attacker.flood(*(request for body in bodies for request in forms(attacker, body)))


@attack()
def names_in_other_charsets(attacker: Attacker) -> Strike:
    """RFC 2231 lets a name say its own charset, in hundreds of continuations."""
    star = "; ".join(f"name*{n}*=punycode''{'a' * 50}" for n in range(500))
    parts = [(f"Content-Disposition: form-data; {star}", b"x"), ("Content-Disposition: form-data; name*=undefined''job", b"x")]
    return attacker.flood(*forms(attacker, multipart(parts)))


@attack()
def thousands_of_parts(attacker: Attacker) -> Strike:
    bodies = [multipart([form_field(f"f{n}", b"", file=file) for n in range(100_000)]) for file in (True, False)]
    return attacker.flood(*(request for body in bodies for request in forms(attacker, body)))


@attack()
def huge_headers_of_parts(attacker: Attacker) -> Strike:
    long, many = "X-A: " + "a" * 20_000_000, "\r\n".join(f"X-{n}: a" for n in range(500_000))
    bodies = [multipart([(f"{JOB_FIELD[0]}\r\n{extra}", JOB_FIELD[1])]) for extra in (long, many)]
    return attacker.flood(*(request for body in bodies for request in forms(attacker, body)))


@attack()
def dispositions_with_thousands_of_parameters(attacker: Attacker) -> Strike:
    header = "Content-Disposition: form-data; name=job" + "".join(f'; p{n}="\\"\\""' for n in range(100_000))
    return attacker.flood(*forms(attacker, multipart([(header, b"{}")])))


@attack()
def boundaries_that_are_missing_or_odd(attacker: Attacker) -> Strike:
    boundaries = (
        "",
        "boundary=",
        f"boundary={'b' * 5000}",
        'boundary="b',
        "boundary=b; boundary=c",
        "boundary*=utf-7''b",
        "boundary=\r",
    )
    body = multipart([JOB_FIELD])
    kinds = [f"multipart/form-data; {boundary}".replace("\r", "") for boundary in boundaries]
    return attacker.flood(*(request for kind in kinds for request in forms(attacker, body, kind)))


@attack()
def bodies_of_near_boundaries(attacker: Attacker) -> Strike:
    """Let a parser look back again and again: everything begins like a boundary, nothing is one."""
    near = b"\r\n--" + b"b" * 60
    body = b"--" + b"b" * 69 + b"\r\n" + JOB_FIELD[0].encode() + b"\r\n\r\n" + near * (BODY_BYTES // len(near))
    return attacker.flood(*forms(attacker, body, f"multipart/form-data; boundary={'b' * 69}"))


@attack()
def preambles_and_epilogues(attacker: Attacker) -> Strike:
    filler = b"\r\n-" * (BODY_BYTES // 3)
    form = multipart([JOB_FIELD])
    return attacker.flood(*forms(attacker, filler + form), *forms(attacker, form + filler))


@attack()
def forms_without_an_end(attacker: Attacker) -> Strike:
    """Send 29 MB of a file that never ends, and break off."""
    body = multipart([JOB_FIELD, form_field("image", bytes(BODY_BYTES), file=True)])[:-10]
    return attacker.aborted(*forms(attacker, body), keep=1.0)


@attack()
def jobs_with_large_pictures_beside_them(attacker: Attacker) -> Strike:
    """Photo and mask of 50 megapixels in one form, a few kB each."""
    size = (7071, 7071)
    parts = [JOB_FIELD, form_field("image", picture(size), file=True), form_field("movable", picture(size, "1"), file=True)]
    return attacker.flood(*forms(attacker, multipart(parts)))
