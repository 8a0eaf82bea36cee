"""The checkpoint manifest: which models there are, the hash of each file, and what a job takes when it does not say."""

import json
import re
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobs.errors import InvalidJob, ManifestInvalid, Problem
from jobs.tables import DEFAULT_POOL, POOL_PATTERN

MANIFEST = "manifest.toml"
EARLY_ROWS, EARLY_SIZE = 6, 32  # of the early mask term: rows of w+, pixels of a block


class ModelDefaults(BaseModel):
    """What a job for this model takes where its spec is silent."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    truncation_psi: float = Field(default=0.7, ge=-2, le=2)
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    feature_resolution: int | None = None
    stop_distance: float | None = Field(default=None, ge=0.1, le=64)  # pixels

    def drag(self, preset: str) -> dict[str, object]:
        """Of a job's drag options; the paper preset stops where the paper does."""
        kept_by_preset = {"stop_distance"} if preset == "paper" else set()
        return self.model_dump(exclude={"truncation_psi", *kept_by_preset}, exclude_none=True)


class ModelEntry(BaseModel):
    """One model of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    file: str  # in the manifest's folder
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    resolution: int  # pixels
    num_ws: int  # rows of w+
    w_dim: int | None = Field(default=None, ge=1)  # width of w; None: imported before that was noted
    c_dim: int = Field(default=0, ge=0)  # classes of a conditional model
    architecture: Literal["skip", "orig", "resnet"] | None = None  # None: imported before that was noted
    pool: str = Field(default=DEFAULT_POOL, pattern=POOL_PATTERN)  # of the workers that run its jobs
    licence: str
    layout: str  # what the file was converted from
    source_sha256: str | None = None  # of the file it was converted from
    discriminator: str | None = None  # its file, of a model that brought one
    discriminator_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    encoder: str | None = None  # its file, of a model that has one: guesses the w of a photo
    encoder_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    geometry: Literal["faces"] | None = None  # what it draws, where that is known exactly: see benchmarks/faces
    defaults: ModelDefaults = ModelDefaults()

    @model_validator(mode="after")
    def default_block_exists(self) -> Self:
        if self.defaults.feature_resolution not in (None, *self.block_resolutions):
            raise ValueError(f"defaults.feature_resolution must be one of {self.block_resolutions}")
        return self

    @property
    def block_resolutions(self) -> list[int]:
        """4, 8, ... resolution."""
        return [2**k for k in range(2, self.resolution.bit_length())]

    def has_early_mask(self, trainable_layers: int, feature_resolution: int) -> bool:
        """Whether `drag.mask_term: early` holds all that such a drag can change; see engine.drag.mask_term."""
        drawn_in_steps = self.architecture in (None, "skip") and self.resolution >= 2 * EARLY_SIZE
        return drawn_in_steps and trainable_layers <= EARLY_ROWS and feature_resolution >= EARLY_SIZE


class PublicModel(BaseModel):
    """Where a model that others publish can be fetched: a table [public.NAME] of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern="^https?://")
    licence: str
    channel_order: Literal["rgb", "bgr"] = "rgb"
    max_bytes: int = Field(default=2**30, gt=0)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")  # recorded at the first download
    defaults: ModelDefaults = ModelDefaults()


class ManifestFile:
    """The manifest of a folder as it is now: read again when its file has changed."""

    def __init__(self, folder: Path) -> None:
        """Raises ManifestInvalid."""
        self.folder = folder
        self.seen = self.version()
        self.manifest = ModelManifest.load(folder)

    def version(self) -> tuple[int, int] | None:
        try:
            found = (self.folder / MANIFEST).stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino  # models are added by putting a new file in its place

    def current(self) -> "ModelManifest":
        """The last one that could be read: a slip of the editor's stops no running service."""
        version = self.version()
        if version != self.seen:
            self.seen = version
            with suppress(ManifestInvalid):
                self.manifest = ModelManifest.load(self.folder)
        return self.manifest


class ModelManifest:
    """All models of a checkpoints folder."""

    def __init__(self, folder: Path, models: dict[str, ModelEntry], public: dict[str, PublicModel] | None = None) -> None:
        self.folder = folder
        self.models = models
        self.public = public or {}

    @classmethod
    def load(cls, folder: Path) -> "ModelManifest":
        """Read manifest.toml.

        Raises:
            ManifestInvalid: it is missing or not what a manifest is, with the reason.
        """
        path = folder / MANIFEST
        try:
            tables = tomllib.loads(path.read_text())
            models = {name: ModelEntry(name=name, **table) for name, table in tables["models"].items()}
            public = {name: PublicModel(**table) for name, table in tables.get("public", {}).items()}
        except (OSError, KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError, ValidationError) as error:
            raise ManifestInvalid(f"{path} is not a checkpoint manifest: {error}") from error
        return cls(folder, models, public)

    def get(self, name: str) -> ModelEntry:
        """Raises InvalidJob when there is no such model."""
        if name not in self.models:
            known = ", ".join(sorted(self.models)) or "none"
            raise InvalidJob([Problem(field="model", message=f"unknown model {name[:100]!r}; known models: {known}")])
        return self.models[name]

    def add(self, entry: ModelEntry) -> None:
        """Append a model to manifest.toml; the file changes whole or not at all."""
        values = entry.model_dump(exclude={"name", "defaults"}, exclude_none=True)
        if entry.pool == DEFAULT_POOL:
            del values["pool"]
        lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
        if defaults := entry.defaults.model_dump(exclude_defaults=True):
            lines.append(f"defaults = {{ {', '.join(f'{key} = {value}' for key, value in defaults.items())} }}")
        self.rewrite("\n".join([self.text().rstrip(), "", f"[models.{entry.name}]", *lines, ""]))

    def record(self, name: str, sha256: str) -> None:
        """Write the hash of a public model's file into its table."""
        self.rewrite(re.sub(rf"(?m)^\[public\.{re.escape(name)}\]$", rf'\g<0>\nsha256 = "{sha256}"', self.text()))

    def remove(self, name: str) -> None:
        """Take a model's table out of manifest.toml."""
        self.rewrite(re.sub(rf"(?ms)^\[models\.{re.escape(name)}\]$.*?(?=^\[|\Z)", "", self.text()))

    def text(self) -> str:
        return (self.folder / MANIFEST).read_text()

    def rewrite(self, text: str) -> None:
        part = self.folder / f"{MANIFEST}.part"
        part.write_text(text)
        part.rename(self.folder / MANIFEST)

    def path(self, entry: ModelEntry) -> Path:
        return self.folder / entry.file

    def files(self, entry: ModelEntry) -> dict[Path, str]:
        """All files of a model and the sha256 of each."""
        files = {self.path(entry): entry.sha256}
        for file, sha256 in ((entry.discriminator, entry.discriminator_sha256), (entry.encoder, entry.encoder_sha256)):
            if file is not None and sha256 is not None:
                files[self.folder / file] = sha256
        return files
