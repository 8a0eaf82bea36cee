"""The download of a public model's file: resumable, and never larger than it may be."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx2

from cli.errors import CommandError

TIMEOUT_S = 30


def download(url: str, path: Path, max_bytes: int, on_progress: Callable[[int, int | None], None]) -> None:
    """Download a URL into a file; resume after the bytes that an earlier call left in PATH.part.

    Args:
        on_progress: called with the bytes that have come, and the total, None if the server does not name it.

    Raises:
        CommandError: the server refuses or ends early, or the file is larger than max_bytes; what can be resumed is kept.
    """
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    try:
        with httpx2.stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as response:
            if response.status_code == 416 and complete_length(response) == have:
                part.rename(path)
                return
            check_response(response, url)
            receive(response, part, have if response.status_code == 206 else 0, max_bytes, on_progress)
    except httpx2.HTTPError as error:
        raise CommandError(
            f"{url} cannot be fetched ({error or type(error).__name__}); run the command again to go on"
        ) from error
    part.rename(path)


def check_response(response: httpx2.Response, url: str) -> None:
    """Raise CommandError unless the response is the file, over a connection as safe as the URL asks for."""
    if response.status_code not in (200, 206):
        raise CommandError(f"{url} answers {response.status_code} {response.reason_phrase}")
    if url.startswith("https:") and response.url.scheme != "https":
        raise CommandError(f"{url} leads to {response.url}, which is not https")


def receive(
    response: httpx2.Response, part: Path, have: int, max_bytes: int, on_progress: Callable[[int, int | None], None]
) -> None:
    """Append the response's bytes to the part file, after the `have` bytes that it keeps."""
    total = complete_length(response)
    too_large = CommandError(f"the file is larger than the {max_bytes} bytes that its manifest entry allows")
    if total is not None and total > max_bytes:
        raise too_large
    with part.open("r+b" if have else "wb") as file:
        file.seek(have)
        for chunk in response.iter_raw():  # as it arrives: a connection that breaks loses nothing that came
            have += len(chunk)
            if have > max_bytes:
                raise too_large
            file.write(chunk)
            on_progress(have, total)
        file.truncate()
    if total is not None and have < total:
        raise CommandError(f"the server ended after {have} of {total} bytes; run the command again to go on")


def complete_length(response: httpx2.Response) -> int | None:
    """Return the length of the whole file, whatever part of it the response holds; None if the server does not name it."""
    if match := re.search(r"/(\d+)$", response.headers.get("content-range", "")):
        return int(match[1])
    length = response.headers.get("content-length")
    return int(length) if length is not None and response.status_code == 200 else None
