"""A job's artifacts as one zip, made while it is sent: never more than a chunk of it is in memory."""

import io
import zipfile
from collections.abc import Iterable, Iterator

from jobs.storage.objects import Storage
from jobs.tables import Artifact


class Outbox(io.RawIOBase):
    """Takes what the zip writes until it is sent. Not seekable, so that sizes follow each member instead of preceding it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        taken, self.parts = b"".join(self.parts), []
        return taken


def archived(artifacts: Iterable[Artifact], storage: Storage) -> Iterator[bytes]:
    """The zip in chunks. Pictures and tensors are stored as they are: they do not get smaller.

    Raises:
        ObjectMissing, StorageUnavailable: in the middle, so that the client sees a zip that ends early.
    """
    outbox = Outbox()
    with zipfile.ZipFile(outbox, "w", zipfile.ZIP_STORED) as archive:
        for artifact in artifacts:
            member = zipfile.ZipInfo(artifact.name, artifact.created_at.utctimetuple()[:6])
            with archive.open(member, "w", force_zip64=True) as file:
                for chunk in storage.stream(artifact.key):
                    file.write(chunk)
                    yield outbox.take()
    yield outbox.take()
