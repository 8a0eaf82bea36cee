"""The model manifest: the models of a folder, the hash of each file, and each model's defaults for jobs.

Who loads a file verifies its hash: `engine.checkpoints.load.verify_sha256`. An entry that is not valid disables no other one.
No error names the manifest's folder, since clients see them; the log does.
"""

import fcntl
import logging
import os
import re
import tomllib
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn, Self, TypeVar

import tomlkit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import InlineTable

from engine.atomic_write import atomic_write
from engine.defaults import has_early_mask
from engine.printable import printable
from jobs.errors import InvalidJob, ManifestInvalid, Problem
from jobs.tables import DEFAULT_POOL, POOL_PATTERN

MANIFEST = "manifest.toml"
MAX_TEXT = 500  # characters of a licence, a file's name, ...
HEADER = re.compile(r"^[ \t]*\[(models|public)\.(\"[^\"\n]*\"|'[^'\n]*'|[A-Za-z0-9_-]+)\][ \t]*(?:#.*)?$", re.MULTILINE)
logger = logging.getLogger(__name__)


def check_text(text: str) -> str:
    """Return a text of the manifest.

    Raises:
        ValueError: it is longer than MAX_TEXT, or has line breaks, control characters or half a surrogate pair.
    """
    unfit = [char for char in text if unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")]
    if unfit:
        raise ValueError(f"must be one line without control characters, has {unfit[0]!a}")
    if len(text) > MAX_TEXT:
        raise ValueError(f"must have at most {MAX_TEXT} characters, has {len(text)}")
    return text


Text = Annotated[str, AfterValidator(check_text)]


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

    name: Text
    file: Text  # in the manifest's folder
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    resolution: int = Field(ge=4, le=1024)  # pixels
    num_ws: int = Field(ge=1)  # rows of w+
    w_dim: int | None = Field(default=None, ge=1)  # width of w; None: imported before the manifest had it
    c_dim: int = Field(default=0, ge=0)  # classes of a conditional model
    architecture: Literal["skip", "orig", "resnet"] | None = None  # None: imported before the manifest had it
    pool: str = Field(default=DEFAULT_POOL, pattern=POOL_PATTERN)  # of the workers that run its jobs
    licence: Text
    layout: Text  # what the file was converted from
    source_sha256: Text | None = None  # of the file it was converted from
    discriminator: Text | None = None  # its file; None: the checkpoint had none
    discriminator_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    encoder: Text | None = None  # the file of the network that guesses a photo's w
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

    url: Text = Field(pattern="^https?://")
    licence: Text
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
        self.manifest.log_invalid_entries()

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
            try:
                self.manifest = ModelManifest.load(self.folder)
            except ManifestInvalid as error:
                logger.error("%s: %s; the last one stays in use", self.folder / MANIFEST, error)
            else:
                self.manifest.log_invalid_entries()
        return self.manifest


class ModelManifest:
    """All models of a checkpoints folder."""

    def __init__(
        self,
        folder: Path,
        models: dict[str, ModelEntry],
        public: dict[str, PublicModel] | None = None,
        invalid: dict[str, str] | None = None,
    ) -> None:
        """Take the entries.

        Args:
            invalid: what is wrong with each entry that is not valid, by its name; a public one is public.NAME.
        """
        self.folder = folder
        self.models = models
        self.public = public or {}
        self.invalid = invalid or {}

    @classmethod
    def load(cls, folder: Path) -> "ModelManifest":
        """Read manifest.toml. An entry that is not valid is left out and remembered.

        Raises:
            ManifestInvalid: the file is missing or no manifest; the message says why, and not where the file lies.
        """
        return cls.parse(folder, read_text(folder))

    @classmethod
    def parse(cls, folder: Path, text: str) -> "ModelManifest":
        """Read the text of a manifest. Raises what `load` raises."""
        tables, invalid = parse_tables(text)
        models = parse_entries(ModelEntry, tables["models"], invalid)
        public = parse_entries(PublicModel, tables["public"], invalid)
        return cls(folder, models, public, invalid)

    def get(self, name: str) -> ModelEntry:
        """Return a model by its name. Raises InvalidJob when there is no such model, or its entry is not valid."""
        if name in self.invalid:
            raise InvalidJob([Problem(field="model", message=self.explain_invalid(name))])
        if name not in self.models:
            known = ", ".join(sorted(self.models)) or "none"
            raise InvalidJob([Problem(field="model", message=f"unknown model {name[:100]!r}; known models: {known}")])
        return self.models[name]

    def require_valid(self, name: str) -> None:
        """Raise ManifestInvalid, and log why, if the manifest has an entry of this name that is not valid."""
        if name in self.invalid:
            logger.error("%s: the entry of model %s is not valid: %s", self.folder / MANIFEST, name, self.invalid[name])
            raise ManifestInvalid(self.explain_invalid(name))

    def explain_invalid(self, name: str) -> str:
        """Return for a client that a model's entry is not valid; the log tells the operator where and why."""
        return f"the entry of model {name!r} in the service's manifest is not valid; the operator finds the reason in the log"

    def log_invalid_entries(self) -> None:
        """Log what is wrong with each entry that is not valid."""
        for name, reason in self.invalid.items():
            logger.error("%s: the entry of %s is not valid: %s", self.folder / MANIFEST, name, reason)

    def add(self, entry: ModelEntry) -> None:
        """Append a model to manifest.toml. Raises ManifestInvalid, OSError; the file is then as it was."""
        values = entry.model_dump(exclude={"name", "defaults"}, exclude_none=True)
        if entry.pool == DEFAULT_POOL:
            del values["pool"]
        if defaults := entry.defaults.model_dump(exclude_defaults=True):
            values["defaults"] = one_line(defaults)
        before, now = self.text(), self.check_addition(entry)
        added = tomlkit.dumps({"models": {entry.name: values}})
        self.rewrite("\n".join([before.rstrip(), "", added]), models=now.models | {entry.name: entry}, public=now.public)

    def check_addition(self, entry: ModelEntry) -> "ModelManifest":
        """Return manifest.toml as it is now. Raises ManifestInvalid if it has a model of the entry's name."""
        now = self.load(self.folder)
        if entry.name in now.models or entry.name in now.invalid:
            raise ManifestInvalid(f"there is a model {entry.name} already")
        return now

    def record(self, name: str, sha256: str) -> None:
        """Write the hash of a public model's file into its table, where the file still has it. Raises as `add` does."""
        document, now = self.parse_document()
        if name in document.get("public", {}) and name in now.public:
            document["public"][name]["sha256"] = sha256
            recorded = now.public[name].model_copy(update={"sha256": sha256})
            self.rewrite(tomlkit.dumps(document), models=now.models, public=now.public | {name: recorded})

    def remove(self, name: str) -> None:
        """Take a model's table out of manifest.toml, where the file still has it. Raises as `add` does."""
        document, now = self.parse_document()
        if name in document.get("models", {}):
            del document["models"][name]
            if not document.get("models") and "public" not in document:
                document["models"] = tomlkit.table()
            others = {other: entry for other, entry in now.models.items() if other != name}
            self.rewrite(tomlkit.dumps(document), models=others, public=now.public)

    def text(self) -> str:
        """Return the text of manifest.toml. Raises ManifestInvalid."""
        return read_text(self.folder)

    def parse_document(self) -> tuple[tomlkit.TOMLDocument, "ModelManifest"]:
        """Return manifest.toml as it is now, with its comments and as entries. Raises ManifestInvalid."""
        text = self.text()
        try:
            return tomlkit.parse(text), self.parse(self.folder, text)
        except TOMLKitError as error:
            raise ManifestInvalid(f"{MANIFEST} cannot be changed before it is mended: {error}") from error

    def rewrite(self, text: str, *, models: dict[str, ModelEntry], public: dict[str, PublicModel]) -> None:
        """Replace manifest.toml; the file changes whole or not at all.

        Args:
            models, public: what the text must read back as.

        Raises:
            ManifestInvalid: it does not.
            OSError: the file cannot be written.
        """
        try:
            data = text.encode()
            found = self.parse(self.folder, data.decode())
        except ValueError as error:
            raise ManifestInvalid(f"the change of {MANIFEST} is no text: {error}") from error
        if (found.models, found.public) != (models, public):
            raise ManifestInvalid(f"the change of {MANIFEST} would not read back as it was meant: the file stays as it is")
        with atomic_write(self.folder / MANIFEST) as part:
            part.write_bytes(data)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let no other process change the folder in the meantime that asks for this lock too."""
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

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


Entry = TypeVar("Entry", ModelEntry, PublicModel)


def read_text(folder: Path) -> str:
    """Return the text of a folder's manifest. Raises ManifestInvalid."""
    try:
        return (folder / MANIFEST).read_text(encoding="utf-8")
    except OSError as error:
        refuse(str(error.strerror), error)
    except ValueError as error:
        refuse("it is not UTF-8", error)


def parse_tables(text: str) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Return the tables of a manifest's entries by kind (models, public) and name, and what is wrong with others by name.

    Where the text is no TOML, the entries are read one by one, so that those in good order still count.

    Raises:
        ManifestInvalid: there is no table of models at all.
    """
    try:
        document, invalid = tomllib.loads(text), dict[str, str]()
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        document, invalid = parse_piecewise(text)
        if not document:
            refuse(printable(str(error)), error)
    tables = {kind: document.get(kind, {}) for kind in ("models", "public")}
    if not tables.keys() & document.keys() or not all(isinstance(table, dict) for table in tables.values()):
        refuse("it has no table [models] or [public]")
    return tables, invalid


def parse_piecewise(text: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the entries of a text that is no TOML as a whole, and what is wrong with those that are no TOML either."""
    found: dict[str, Any] = {}
    invalid: dict[str, str] = {}
    headers = list(HEADER.finditer(text))
    ends = [*(header.start() for header in headers[1:]), len(text)]
    for header, end in zip(headers, ends, strict=False):
        kind, name = header[1], header[2].strip("\"'")
        tables = found.setdefault(kind, {})
        try:
            here = tomllib.loads(text[header.start() : end])[kind]
            if tables.keys() & here.keys():
                raise ValueError("it is there twice")
            tables |= here
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            invalid[entry_name(kind, name)] = printable(str(error))
    return (found | {"models": found.get("models", {})} if headers else {}), invalid


def parse_entries(kind: type[Entry], tables: dict[str, Any], invalid: dict[str, str]) -> dict[str, Entry]:
    """Return the valid entries of tables, and add to `invalid` what is wrong with the others."""
    entries: dict[str, Entry] = {}
    for name, table in tables.items():
        key = entry_name("models" if kind is ModelEntry else "public", name)
        if key in invalid:
            continue
        try:
            named = {"name": name} if kind is ModelEntry else {}
            entries[name] = kind.model_validate({**table, **named} if isinstance(table, dict) else table)
        except ValidationError as error:
            found = [f"{'.'.join(map(str, part['loc']))} {part['msg']}".strip() for part in error.errors()]
            invalid[key] = printable("; ".join(found))
    return entries


def entry_name(kind: str, name: str) -> str:
    """Return how messages and `ModelManifest.invalid` call an entry."""
    return name if kind == "models" else f"public.{name}"


def refuse(reason: str, cause: Exception | None = None) -> NoReturn:
    """Raise ManifestInvalid for a whole file."""
    raise ManifestInvalid(f"{MANIFEST} is not a checkpoint manifest: {reason}") from cause
