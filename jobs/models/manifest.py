"""The model manifest: the models of a folder, the hash of each file, and each model's defaults for jobs.

Who loads a file verifies its hash: `engine.checkpoints.load.verify_sha256`.
"""

import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Literal, Self

import tomlkit
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from tomlkit.items import InlineTable

from engine.atomic_write import atomic_write
from engine.defaults import has_early_mask
from jobs.errors import InvalidJob, ManifestInvalid, Problem
from jobs.tables import DEFAULT_POOL, POOL_PATTERN

MANIFEST = "manifest.toml"


class ModelDefaults(BaseModel):
    """The values that a job for this model uses where its spec has none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    truncation_psi: float = Field(default=0.7, ge=-2, le=2)
    learning_rate: float | None = Field(default=None, gt=0, le=1)
    feature_resolution: int | None = None
    stop_distance: float | None = Field(default=None, ge=0.1, le=64)  # pixels

    def drag(self, preset: str) -> dict[str, object]:
        """Return the defaults of a job's drag options. The paper preset keeps its own stop_distance."""
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
    w_dim: int | None = Field(default=None, ge=1)  # width of w; None: imported before the manifest had it
    c_dim: int = Field(default=0, ge=0)  # classes of a conditional model
    architecture: Literal["skip", "orig", "resnet"] | None = None  # None: imported before the manifest had it
    pool: str = Field(default=DEFAULT_POOL, pattern=POOL_PATTERN)  # of the workers that run its jobs
    licence: str
    layout: str  # what the file was converted from
    source_sha256: str | None = None  # of the file it was converted from
    discriminator: str | None = None  # its file; None: the checkpoint had none
    discriminator_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    encoder: str | None = None  # the file of the network that guesses a photo's w
    encoder_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    geometry: Literal["faces"] | None = None  # what it draws, where that is known exactly; see benchmarks/faces
    defaults: ModelDefaults = ModelDefaults()

    @model_validator(mode="after")
    def default_block_exists(self) -> Self:
        """Refuse a default feature_resolution that is no block of the model."""
        if self.defaults.feature_resolution not in (None, *self.block_resolutions):
            raise ValueError(f"defaults.feature_resolution must be one of {self.block_resolutions}")
        return self

    @property
    def block_resolutions(self) -> list[int]:
        """The sizes of the model's blocks in pixels: 4, 8, ... resolution."""
        return [2**k for k in range(2, self.resolution.bit_length())]

    def has_early_mask(self, trainable_layers: int, feature_resolution: int) -> bool:
        """Return whether `drag.mask_term: early` covers everything that such a drag can change; see engine.drag.mask_term."""
        return has_early_mask(self.architecture, self.resolution, trainable_layers, feature_resolution)


class PublicModel(BaseModel):
    """A model that others publish, and its URL: a table [public.NAME] of the manifest."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(pattern="^https?://")
    licence: str
    channel_order: Literal["rgb", "bgr"] = "rgb"
    max_bytes: int = Field(default=2**30, gt=0)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")  # recorded at the first download
    defaults: ModelDefaults = ModelDefaults()


class ManifestFile:
    """A folder's manifest, which is read again when its file has changed."""

    def __init__(self, folder: Path) -> None:
        """Read the manifest. Raises ManifestInvalid."""
        self.folder = folder
        self.loaded_version = self.version()
        self.manifest = ModelManifest.load(folder)

    def version(self) -> tuple[int, int] | None:
        """Return what changes whenever the file does; None when there is no file."""
        try:
            status = (self.folder / MANIFEST).stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino  # a changed manifest is a new file

    def current(self) -> "ModelManifest":
        """Return the last manifest that could be read, so that a typing error stops no running service."""
        version = self.version()
        if version != self.loaded_version:
            self.loaded_version = version
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
            ManifestInvalid: the file is missing or no manifest; the message says why.
        """
        path = folder / MANIFEST
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8"))
            models = {name: ModelEntry(name=name, **table) for name, table in tables["models"].items()}
            public = {name: PublicModel(**table) for name, table in tables.get("public", {}).items()}
        except (OSError, KeyError, TypeError, AttributeError, tomllib.TOMLDecodeError, ValidationError) as error:
            raise ManifestInvalid(f"{path} is not a checkpoint manifest: {error}") from error
        return cls(folder, models, public)

    def get(self, name: str) -> ModelEntry:
        """Return a model by its name. Raises InvalidJob when there is no such model."""
        if name not in self.models:
            known = ", ".join(sorted(self.models)) or "none"
            raise InvalidJob([Problem(field="model", message=f"unknown model {name[:100]!r}; known models: {known}")])
        return self.models[name]

    def add(self, entry: ModelEntry) -> None:
        """Append a model to manifest.toml."""
        values = entry.model_dump(exclude={"name", "defaults"}, exclude_none=True)
        if entry.pool == DEFAULT_POOL:
            del values["pool"]
        if defaults := entry.defaults.model_dump(exclude_defaults=True):
            values["defaults"] = one_line(defaults)
        self.rewrite("\n".join([self.text().rstrip(), "", tomlkit.dumps({"models": {entry.name: values}})]))

    def record(self, name: str, sha256: str) -> None:
        """Write the hash of a public model's file into its table, where the file still has it."""
        document = tomlkit.parse(self.text())
        if name in document.get("public", {}):
            document["public"][name]["sha256"] = sha256
            self.rewrite(tomlkit.dumps(document))

    def remove(self, name: str) -> None:
        """Take a model's table out of manifest.toml, where the file still has it."""
        document = tomlkit.parse(self.text())
        if name in document.get("models", {}):
            del document["models"][name]
            self.rewrite(tomlkit.dumps(document))

    def text(self) -> str:
        """Return the text of manifest.toml."""
        return (self.folder / MANIFEST).read_text(encoding="utf-8")

    def rewrite(self, text: str) -> None:
        """Replace manifest.toml; the file changes whole or not at all."""
        with atomic_write(self.folder / MANIFEST) as part:
            part.write_text(text, encoding="utf-8")

    def path(self, entry: ModelEntry) -> Path:
        """Return the path of a model's file."""
        return self.folder / entry.file

    def files(self, entry: ModelEntry) -> dict[Path, str]:
        """Return all files of a model with the sha256 of each."""
        files = {self.path(entry): entry.sha256}
        for file, sha256 in ((entry.discriminator, entry.discriminator_sha256), (entry.encoder, entry.encoder_sha256)):
            if file is not None and sha256 is not None:
                files[self.folder / file] = sha256
        return files


def one_line(values: dict[str, float]) -> InlineTable:
    """Write values as `{ key = value, ... }`, as the manifest's other defaults are written."""
    table = tomlkit.inline_table()
    table.add(tomlkit.ws(" "))
    table.update(values)
    table.add(tomlkit.ws(" "))
    return table
