"""The folder of one edit's artifacts."""

import shutil
from pathlib import Path

from engine.atomic_write import atomic_write

NAMES = (
    "result.png", "source.png", "overlay.png", "animation.mp4", "animation.webp", "animation.gif", "latent.safetensors",
    "trajectory.json", "manifest.json", "inverted.png", "photo.png", "generator.safetensors",
)  # fmt: skip


class ArtifactFolder:
    """A folder whose artifacts of an earlier edit are removed; other files stay."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            (path / name).unlink(missing_ok=True)
        shutil.rmtree(path / "frames", ignore_errors=True)

    def write(self, name: str, data: bytes) -> Path:
        """Write an artifact, which appears whole or not at all, and return its path."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as part:
            part.write_bytes(data)
        return target
