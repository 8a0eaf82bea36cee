"""Fetching a public model's file: resumed where it was stopped, never larger than it may be."""

import re
from collections.abc import Callable
from pathlib import Path

import httpx2

from cli.errors import CommandError

TIMEOUT_S = 30


def download(url: str, path: Path, max_bytes: int, seen: Callable[[int, int | None], None]) -> None:
    """Write what the URL holds to a file; what an earlier call left in PATH.part is not fetched again.

    Args:
        seen: shown how many bytes there are and how many there will be, None if the server does not say.

    Raises:
        CommandError: the server refuses or ends early, or the file is larger than max_bytes; a part that can go on is kept.
    """
    part = path.with_name(path.name + ".part")
    have = part.stat().st_size if part.exists() else 0
    headers = {"Range": f"bytes={have}-", "Accept-Encoding": "identity"} if have else {"Accept-Encoding": "identity"}
    try:
        with httpx2.stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as answer:
            if answer.status_code == 416 and complete_length(answer) == have:
                part.rename(path)
                return
            check(answer, url)
            receive(answer, part, have if answer.status_code == 206 else 0, max_bytes, seen)
    except httpx2.HTTPError as error:
        raise CommandError(
            f"{url} cannot be fetched ({error or type(error).__name__}); run the command again to go on"
        ) from error
    part.rename(path)


def check(answer: httpx2.Response, url: str) -> None:
    """Raises CommandError unless the file comes, over a connection as safe as the one that was asked for."""
    if answer.status_code not in (200, 206):
        raise CommandError(f"{url} answers {answer.status_code} {answer.reason_phrase}")
    if url.startswith("https:") and answer.url.scheme != "https":
        raise CommandError(f"{url} leads to {answer.url}, which is not https")


def receive(answer: httpx2.Response, part: Path, have: int, max_bytes: int, seen: Callable[[int, int | None], None]) -> None:
    total = complete_length(answer)
    too_large = CommandError(f"the file is larger than the {max_bytes} bytes that its manifest entry allows")
    if total is not None and total > max_bytes:
        raise too_large
    with part.open("r+b" if have else "wb") as file:
        file.seek(have)
        for chunk in answer.iter_raw():  # as it arrives: a connection that breaks loses nothing that came
            have += len(chunk)
            if have > max_bytes:
                raise too_large
            file.write(chunk)
            seen(have, total)
        file.truncate()
    if total is not None and have < total:
        raise CommandError(f"the server ended after {have} of {total} bytes; run the command again to go on")


def complete_length(answer: httpx2.Response) -> int | None:
    """Of the whole file, whatever part of it this answer holds."""
    if match := re.search(r"/(\d+)$", answer.headers.get("content-range", "")):
        return int(match[1])
    length = answer.headers.get("content-length")
    return int(length) if length is not None and answer.status_code == 200 else None
