"""`dragqueue models`: list, import, download, verify and remove models of a folder."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from cli.errors import CommandError
from engine.printable import quote
from jobs.errors import InvalidJob, ManifestInvalid
from jobs.models.manifest import MANIFEST, ModelDefaults, ModelEntry, ModelManifest, check_text
from jobs.settings import REPOSITORY

if TYPE_CHECKING:
    from engine.checkpoints.conversion import Conversion

app = typer.Typer(help="Import, list, verify and remove models.", no_args_is_help=True)
console = Console(stderr=True)
CHECKPOINTS = REPOSITORY / "checkpoints"
Checkpoints = Annotated[Path, typer.Option(envvar="DRAGQUEUE_CHECKPOINTS", help="Folder with manifest.toml.")]
TRANSFER = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
STEPS = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}"


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="A checkpoint of NVIDIA's, TensorFlow's, rosinality's or mmagic's layout.")],
    name: Annotated[str, typer.Option(help="What jobs will call it.")],
    checkpoints: Checkpoints = CHECKPOINTS,
    licence: Annotated[str, typer.Option(help="Under which the file may be used.")] = "unknown",
    channel_order: Annotated[str, typer.Option(help="rgb, or bgr for some of mmagic's.")] = "rgb",
) -> None:
    """Convert a checkpoint, whatever its layout, without executing anything in it."""
    if re.fullmatch(NAME, name) is None:
        raise CommandError(f"--name must be letters, digits, - and _, at most 100, got {quote(name)}")
    if channel_order not in ("rgb", "bgr"):
        raise CommandError(f"--channel-order must be rgb or bgr, got {quote(channel_order)}")
    try:
        check_text(licence)
    except ValueError as error:
        raise CommandError(f"--licence {error}") from error
    create_manifest(checkpoints)
    manifest = open_manifest(checkpoints)
    if name in manifest.models or name in manifest.invalid:
        raise CommandError(f"there is a model {name} already: choose another --name, or remove it first")
    bgr = channel_order == "bgr"
    print_model(import_checkpoint(file, manifest, name=name, licence=licence, bgr=bgr, defaults=ModelDefaults()))


def print_model(entry: ModelEntry) -> None:
    """Print what was imported."""
    discriminator = ", with its discriminator" if entry.discriminator is not None else ""
    console.print(
        f"{entry.name}: {entry.layout}, {entry.resolution} px, {entry.num_ws} rows of w+{discriminator}", highlight=False
    )


def import_checkpoint(
    file: Path, manifest: ModelManifest, *, name: str, licence: str, bgr: bool, defaults: ModelDefaults
) -> ModelEntry:
    """Convert a checkpoint into canonical files beside the manifest, and add their entry.

    Raises:
        CommandError: the file cannot be converted, or the manifest cannot be changed; nothing is left of it.
    """
    from engine.checkpoints.conversion import workspace
    from engine.errors import EngineError

    try:
        with workspace(manifest.folder) as folder:
            conversion = convert(file, folder / f"{name}.safetensors", folder / f"{name}.discriminator.safetensors", bgr=bgr)
            entry = describe(conversion, name, licence, sha256_of(file)).model_copy(update={"defaults": defaults})
            install(conversion, entry, manifest)
            return entry
    except (EngineError, ManifestInvalid) as error:
        raise CommandError(str(error)) from error


def convert(file: Path, generator: Path, discriminator: Path, *, bgr: bool) -> "Conversion":
    """Convert a checkpoint into canonical files, and show what is done. Raises what convert_checkpoint raises."""
    from engine.checkpoints.conversion import convert_checkpoint

    with Progress(*STEPS, console=console) as bar:
        task = bar.add_task("starting", total=None)
        for step in convert_checkpoint(file, generator, discriminator, bgr=bgr):
            bar.update(task, description=step.phase)
            if step.conversion is not None:
                return step.conversion
    raise AssertionError("a conversion ends with its result")


def describe(conversion: "Conversion", name: str, licence: str, source_sha256: str) -> ModelEntry:
    """Return the manifest's entry of a converted network."""
    config, discriminator = conversion.config, conversion.discriminator
    shape = {part: getattr(config, part) for part in ("resolution", "num_ws", "w_dim", "c_dim", "architecture")}
    files = {"file": conversion.generator.name, "sha256": sha256_of(conversion.generator), "source_sha256": source_sha256}
    if discriminator is not None:
        files |= {"discriminator": discriminator.name, "discriminator_sha256": sha256_of(discriminator)}
    return ModelEntry.model_validate({"name": name, "licence": licence, "layout": conversion.layout, **shape, **files})


def install(conversion: "Conversion", entry: ModelEntry, manifest: ModelManifest) -> None:
    """Move the files of a converted network beside the manifest, and add its entry.

    Raises:
        ManifestInvalid, OSError: the manifest cannot be changed, perhaps since another import took the name; it is as it was,
            and so are the files.
    """
    files = [(conversion.generator, entry.file), (conversion.discriminator, entry.discriminator)]
    with manifest.locked():
        manifest.check_addition(entry)
        moved: list[Path] = []
        try:
            for source, target in files:
                if source is not None and target is not None:
                    moved.append(source.replace(manifest.folder / target))
            manifest.add(entry)
        except BaseException:
            for path in moved:
                path.unlink(missing_ok=True)
            raise


@app.command("download")
def download_(
    name: Annotated[str, typer.Argument(help="One of the manifest's public models; models list shows them.")],
    checkpoints: Checkpoints = CHECKPOINTS,
) -> None:
    """Fetch a public model and import it. Mind its licence."""
    from cli.download import download

    manifest = open_manifest(checkpoints)
    if name in manifest.models or name in manifest.invalid:
        raise CommandError(f"there is a model {name} already")
    if name not in manifest.public:
        raise CommandError(f"there is no public model {quote(name)}; there are: {', '.join(sorted(manifest.public)) or 'none'}")
    public = manifest.public[name]
    file = checkpoints / f"{name}.download"
    with Progress(*TRANSFER, console=console) as bar:
        task = bar.add_task(name, total=None)
        download(public.url, file, public.max_bytes, lambda have, total: bar.update(task, completed=have, total=total))
    sha256 = sha256_of(file)
    if public.sha256 not in (None, sha256):
        file.unlink()
        raise CommandError(f"{public.url} has sha256 {sha256[:12]}..., at the first download it was {str(public.sha256)[:12]}...")
    try:
        bgr = public.channel_order == "bgr"
        entry = import_checkpoint(file, manifest, name=name, licence=public.licence, bgr=bgr, defaults=public.defaults)
    finally:
        file.unlink()
    if public.sha256 is None:
        change(manifest, lambda: manifest.record(name, sha256))
    print_model(entry)
    console.print(f"licence: {public.licence}", highlight=False, markup=False)


@app.command("list")
def list_(checkpoints: Checkpoints = CHECKPOINTS) -> None:
    """Show the models of the manifest, and the public ones that can be downloaded."""
    manifest = open_manifest(checkpoints)
    table = Table("name", "pixels", "rows of w+", "classes", "layout", "licence", "sha256")
    for entry in manifest.models.values():
        shape = map(str, (entry.resolution, entry.num_ws, entry.c_dim))
        table.add_row(*map(Text, (entry.name, *shape, entry.layout, entry.licence, entry.sha256[:12])))
    for name, public in manifest.public.items():
        if name not in manifest.models:
            table.add_row(*map(Text, (name, "", "", "", "to download", public.licence, (public.sha256 or "")[:12])))
    Console().print(table)
    for name, reason in manifest.invalid.items():
        console.print(f"the entry of {quote(name)} is not valid: {reason}", highlight=False, markup=False)


@app.command()
def verify(checkpoints: Checkpoints = CHECKPOINTS) -> None:
    """Compare every file with its hash; exit code 1 when one differs or is missing."""
    manifest = open_manifest(checkpoints)
    wrong = [f"the entry of {quote(name)} is not valid: {reason}" for name, reason in manifest.invalid.items()]
    wrong += [f"{entry.name} {reason}" for entry in manifest.models.values() if (reason := find_defect(manifest, entry))]
    if wrong:
        raise CommandError("; ".join(wrong))
    console.print(f"{len(manifest.models)} models are what the manifest says", highlight=False)


@app.command()
def remove(name: str, checkpoints: Checkpoints = CHECKPOINTS) -> None:
    """Take a model out of the manifest and delete its files."""
    manifest = open_manifest(checkpoints)
    if name in manifest.invalid:
        change(manifest, lambda: manifest.remove(name))
        console.print(
            f"the entry of {quote(name)}, which was not valid, is gone; files that it may have named stay", markup=False
        )
        return
    try:
        entry = manifest.get(name)
    except InvalidJob as error:
        raise CommandError(str(error)) from error
    change(manifest, lambda: manifest.remove(name))
    for path in manifest.files(entry):
        path.unlink(missing_ok=True)
    console.print(f"{name} is gone", markup=False)


def change(manifest: ModelManifest, action: Callable[[], None]) -> None:
    """Change the manifest while no other import does. Raises CommandError when it cannot be changed; it is then as it was."""
    try:
        with manifest.locked():
            action()
    except ManifestInvalid as error:
        raise CommandError(f"{manifest.folder / MANIFEST}: {error}") from error


def create_manifest(checkpoints: Path) -> None:
    """Create an empty manifest in a folder that has none."""
    path = checkpoints / MANIFEST
    if not path.exists():
        checkpoints.mkdir(parents=True, exist_ok=True)
        path.write_text("[models]\n")


def open_manifest(checkpoints: Path) -> ModelManifest:
    """Return the manifest of a folder.

    Raises:
        CommandError: there is none, or it is not valid.
    """
    try:
        return ModelManifest.load(checkpoints)
    except ManifestInvalid as error:
        raise CommandError(f"{checkpoints / MANIFEST}: {error}") from error


def find_defect(manifest: ModelManifest, entry: ModelEntry) -> str | None:
    """Return what is wrong with a model's files; None if nothing is."""
    for path, sha256 in manifest.files(entry).items():
        if not path.is_file():
            return f"is missing: there is no {path}"
        if sha256_of(path) != sha256:
            return f"is not what the manifest says: the hash of {path.name} differs"
    return None


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
