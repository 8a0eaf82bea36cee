"""A job's artifacts as files; each appears whole or not at all, and only if it is what the service named."""

import hashlib
import os
import re
from pathlib import Path

from dragqueue_client.errors import DownloadDamaged
from dragqueue_client.models import Artifact

NAME = re.compile(r"(frames/)?[A-Za-z0-9_-][A-Za-z0-9._-]*")


def artifact_path(folder: Path, artifact: Artifact) -> Path:
    """Return the path of an artifact in a folder.

    Raises:
        DownloadDamaged: the name would lead out of the folder.
    """
    if not NAME.fullmatch(artifact.name):
        raise DownloadDamaged(f"{artifact.name!r} is no name of an artifact")
    return folder / artifact.name


def is_downloaded(folder: Path, artifact: Artifact) -> bool:
    """Return whether the folder holds the artifact, whole and unchanged."""
    path = artifact_path(folder, artifact)
    return path.is_file() and path.stat().st_size == artifact.size_bytes and sha256_of(path.read_bytes()) == artifact.sha256


def write_artifact(folder: Path, artifact: Artifact, data: bytes) -> Path:
    """Write a downloaded artifact into a folder and return its path.

    Raises:
        DownloadDamaged: the bytes do not have the sha256 that the service named.
    """
    if sha256_of(data) != artifact.sha256:
        raise DownloadDamaged(f"{artifact.name} arrived damaged: its sha256 is not the one that the service named")
    path = artifact_path(folder, artifact)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, data)
    return path


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, then rename it."""
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def sha256_of(data: bytes) -> str:
    """Return the SHA-256 of the data in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
