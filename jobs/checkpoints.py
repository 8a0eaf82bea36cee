"""The checkpoint manifest: which models there are, the hash of each file, and what a job takes when it does not say."""

import tomllib
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobs.errors import InvalidJob, Problem

MANIFEST = "manifest.toml"


class ModelDefaults(BaseModel):
    """What a job for this model takes where its spec is silent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    truncation_psi: float = 0.7
    learning_rate: float | None = None
    feature_resolution: int | None = None

    def drag(self) -> dict[str, object]:
        return self.model_dump(exclude={"truncation_psi"}, exclude_none=True)


class ModelEntry(BaseModel):
    """One model of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    file: str  # in the manifest's folder
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    resolution: int  # pixels
    num_ws: int  # rows of w+
    licence: str
    layout: str  # what the file was converted from
    defaults: ModelDefaults = ModelDefaults()


class Manifest:
    """All models of a checkpoints folder."""

    def __init__(self, folder: Path, models: dict[str, ModelEntry]) -> None:
        self.folder = folder
        self.models = models

    @classmethod
    def load(cls, folder: Path) -> "Manifest":
        """Read manifest.toml.

        Raises:
            ValueError: it is missing or not what a manifest is, with the reason.
        """
        path = folder / MANIFEST
        try:
            tables = tomllib.loads(path.read_text())["models"]
            models = {name: ModelEntry(name=name, **table) for name, table in tables.items()}
        except (OSError, KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError, ValidationError) as error:
            raise ValueError(f"{path} is not a checkpoint manifest: {error}") from error
        return cls(folder, models)

    def get(self, name: str) -> ModelEntry:
        """Raises InvalidJob when there is no such model."""
        if name not in self.models:
            known = ", ".join(sorted(self.models)) or "none"
            raise InvalidJob([Problem(field="model", message=f"unknown model {name[:100]!r}; known models: {known}")])
        return self.models[name]

    def path(self, entry: ModelEntry) -> Path:
        return self.folder / entry.file
