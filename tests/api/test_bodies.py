"""Media types, JSON limits and multipart forms, from bytes alone."""

import asyncio

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from api.bodies import BodyTooLarge, ByteBudget, check_json_values, limit_body, split_parts
from api.media_types import MediaType, UnsupportedMediaType, read_media_type
from jobs.errors import InvalidJob

FORM = MediaType("multipart/form-data", b"b")
HEAD = b'Content-Disposition: form-data; name="job"\r\n'


def media_type(content_type, **others):
    return read_media_type(Headers({"content-type": content_type, **others}))


@pytest.mark.parametrize(
    "charset", ["punycode", "undefined", "utf-7", "utf-16", "idna", "rot13", "latin-1", "utf-8-sig", "unicode_escape", "''"]
)
def test_any_charset_but_utf_8_is_refused(charset):
    with pytest.raises(UnsupportedMediaType, match="must be UTF-8"):
        media_type(f"multipart/form-data; boundary=b; charset={charset}")


@pytest.mark.parametrize("charset", ["utf-8", "UTF-8", '"utf-8"', "utf8"])
def test_utf_8_may_be_named(charset):
    assert media_type(f"application/json; charset={charset}") == MediaType("application/json")


def test_a_compressed_body_is_refused():
    with pytest.raises(UnsupportedMediaType, match="uncompressed"):
        media_type("application/json", **{"content-encoding": "gzip"})


@pytest.mark.parametrize(
    ("name", "is_json"), [("application/json", True), ("application/merge-patch+json", True), ("text/json", False), ("", False)]
)
def test_json_is_known_by_its_name(name, is_json):
    assert media_type(name).is_json == is_json


@pytest.mark.parametrize("text", [b"[" * 101, b"[" + b"[]," * 60, b"{" + b'"a":1,' * 101, b"[" + b"0," * 101])
def test_json_of_too_many_values_is_refused_before_it_is_parsed(text):
    with pytest.raises(BodyTooLarge, match="100 JSON values"):
        check_json_values(text, 100)


def test_a_form_is_split_into_its_parts():
    body = b"--b\r\n" + HEAD + b'\r\n{}\r\n--b\r\nContent-Type: image/png\r\nContent-Disposition: form-data; name="image"\r\n\r\n'
    assert split_parts(bytearray(body + b"\r\n--\r\n\x00\r\n--b--\r\nend"), FORM, 3) == [
        ("job", b"{}"),
        ("image", b"\r\n--\r\n\x00"),
    ]


def test_what_comes_before_the_first_boundary_is_skipped():
    assert split_parts(bytearray(b"hello\r\n--b\r\n" + HEAD + b"\r\n\r\n--b--"), FORM, 3) == [("job", b"")]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--",
        b"--b",
        b"--b\r\n",
        b"--c\r\n" + HEAD + b"\r\n{}\r\n--c--",
        b"--b\r\n" + HEAD + b"\r\n{}",
        b"--b\r\n" + HEAD + b"\r\n--b--",
        b"--bb\r\n" + HEAD + b"\r\n{}\r\n--b--",
        b"--b\r\nContent-Disposition: form-data\r\n\r\n{}\r\n--b--",
        b"--b\r\nX: " + b"x" * 5000 + b"\r\n" + HEAD + b"\r\n{}\r\n--b--",
        (b"--b\r\n" + HEAD + b"\r\n{}\r\n") * 4 + b"--b--",
    ],
)
def test_a_malformed_form_is_refused(body):
    with pytest.raises(InvalidJob) as caught:
        split_parts(bytearray(body), FORM, 3)
    assert [problem.field for problem in caught.value.problems] == ["body"]


@pytest.mark.parametrize("boundary", [b"", b"x" * 71])
def test_a_form_needs_a_boundary_of_a_sane_length(boundary):
    with pytest.raises(InvalidJob, match="a boundary of 1 to 70 bytes"):
        split_parts(bytearray(b"--b--"), MediaType("multipart/form-data", boundary), 3)


def receive_one(headers, body, max_bytes=10**6):
    """Receive a body of one part within a limit; return how many bytes of room were held."""

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def run():
        budget = ByteBudget(10**6, 10**6)
        request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
        async with budget.hold("a") as room:
            await (await limit_body(request, receive, max_bytes, room))()
            return room.held_bytes, budget.used["a"]

    return asyncio.run(run())


@pytest.mark.parametrize("headers", [[], [(b"content-length", b"10")]])
def test_a_body_in_chunks_holds_room_for_what_has_arrived_whatever_length_it_declares(headers):
    assert receive_one([*headers, (b"transfer-encoding", b"chunked")], b"x" * 150_000) == (150_000, 150_000)


def test_a_body_of_a_declared_length_holds_its_room_at_once():
    assert receive_one([(b"content-length", b"150000")], b"x") == (150_000, 150_000)


@pytest.mark.parametrize("headers", [[(b"content-length", b"150000")], [(b"transfer-encoding", b"chunked")]])
def test_a_body_over_its_limit_is_refused(headers):
    with pytest.raises(BodyTooLarge, match="100000 bytes"):
        receive_one(headers, b"x" * 150_000, max_bytes=100_000)
