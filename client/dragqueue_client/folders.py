"""A job's artifacts as files: each appears whole or not at all, and only if it is what the service said."""

import hashlib
import re
from pathlib import Path

from dragqueue_client.errors import Damaged
from dragqueue_client.models import Artifact

NAME = re.compile(r"(frames/)?[A-Za-z0-9_-][A-Za-z0-9._-]*")


def path_of(folder: Path, artifact: Artifact) -> Path:
    """Raises Damaged for a name that would lead out of the folder."""
    if not NAME.fullmatch(artifact.name):
        raise Damaged(f"{artifact.name!r} is no name of an artifact")
    return folder / artifact.name


def is_there(folder: Path, artifact: Artifact) -> bool:
    """Whether an earlier download has it."""
    path = path_of(folder, artifact)
    return path.is_file() and path.stat().st_size == artifact.size_bytes and sha256(path.read_bytes()) == artifact.sha256


def store(folder: Path, artifact: Artifact, data: bytes) -> Path:
    """Raises Damaged."""
    if sha256(data) != artifact.sha256:
        raise Damaged(f"{artifact.name} arrived damaged: its sha256 is not the one that the service named")
    path = path_of(folder, artifact)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.rename(path)
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
