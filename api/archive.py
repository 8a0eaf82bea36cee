"""A job's artifacts as one zip, made while it is sent: never more than a chunk of it is in memory."""

import io
import zipfile
from collections.abc import Iterable, Iterator

from jobs.storage.objects import Storage
from jobs.tables import Artifact


class ZipBuffer(io.RawIOBase):
    """A file that keeps what a zip writes until it is taken. It cannot seek, so sizes follow each member."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Keep the data."""
        self.parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        data, self.parts = b"".join(self.parts), []
        return data


def stream_zip(artifacts: Iterable[Artifact], storage: Storage) -> Iterator[bytes]:
    """Yield the zip in chunks. Members are stored uncompressed: pictures and tensors do not get smaller.

    Raises:
        ObjectMissing, StorageUnavailable: in the middle, so that the client sees a zip that ends early.
    """
    buffer = ZipBuffer()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for artifact in artifacts:
            member = zipfile.ZipInfo(artifact.name, artifact.created_at.utctimetuple()[:6])
            with archive.open(member, "w", force_zip64=True) as file:
                for chunk in storage.stream(artifact.key):
                    file.write(chunk)
                    yield buffer.take()
    yield buffer.take()
