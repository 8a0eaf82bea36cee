"""The media types of request bodies: the only place that reads Content-Type and Content-Encoding."""

from dataclasses import dataclass

from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers

UTF8 = ("utf-8", "utf8", "us-ascii")
MULTIPART = "multipart/form-data"


class UnsupportedMediaType(Exception):
    """Raised when a body is of a kind that its route does not read. The message is for the client."""


@dataclass(frozen=True)
class MediaType:
    """What a request says about its body."""

    name: str  # such as application/json, in small letters; empty when it says nothing
    boundary: bytes = b""  # between the parts of a multipart body

    @property
    def is_json(self) -> bool:
        """Whether the body is JSON by its name."""
        return self.name == "application/json" or (self.name.startswith("application/") and self.name.endswith("+json"))


def read_media_type(headers: Headers) -> MediaType:
    """Read the media type of a request.

    Raises:
        UnsupportedMediaType: the text is not UTF-8, or the body is compressed.
    """
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedMediaType("Content-Encoding: send the body as it is, uncompressed")
    name, options = parse_options_header(headers.get("content-type", ""))
    charset = options.get(b"charset", b"utf-8").decode("latin-1").strip().lower()
    if charset not in UTF8:
        raise UnsupportedMediaType("Content-Type: text must be UTF-8: leave charset out, or send charset=utf-8")
    return MediaType(name.decode("latin-1").lower(), options.get(b"boundary", b""))
