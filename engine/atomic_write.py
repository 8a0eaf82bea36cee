"""Files that appear whole or not at all, even after a power loss. This module needs the standard library alone."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a part file beside `path`; the file that the block writes there replaces `path` at the end.

    The file and its folder reach the disk before the block is left. If the block or the replacement fails,
    the part file is removed and `path` is as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        flush_to_disk(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
