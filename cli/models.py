"""`dragqueue models`: list, import, download, verify and remove models of a folder."""

import hashlib
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from cli.errors import CommandError
from jobs.errors import InvalidJob, ManifestInvalid
from jobs.models.manifest import MANIFEST, ModelEntry, ModelManifest
from jobs.settings import REPOSITORY

app = typer.Typer(help="Import, list, verify and remove models.", no_args_is_help=True)
console = Console(stderr=True)
CHECKPOINTS = REPOSITORY / "checkpoints"
Checkpoints = Annotated[Path, typer.Option(envvar="DRAGQUEUE_CHECKPOINTS", help="Folder with manifest.toml.")]
TRANSFER = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
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
        raise CommandError(f"--name must be letters, digits, - and _, at most 100, got {name!r}")
    if channel_order not in ("rgb", "bgr"):
        raise CommandError(f"--channel-order must be rgb or bgr, got {channel_order}")
    create_manifest(checkpoints)
    manifest = open_manifest(checkpoints)
    if name in manifest.models:
        raise CommandError(f"there is a model {name} already: choose another --name, or remove it first")
    entry = convert(file, name, checkpoints, licence, bgr=channel_order == "bgr")
    manifest.add(entry)
    print_model(entry)


def print_model(entry: ModelEntry) -> None:
    """Print what was imported."""
    discriminator = ", with its discriminator" if entry.discriminator is not None else ""
    console.print(
        f"{entry.name}: {entry.layout}, {entry.resolution} px, {entry.num_ws} rows of w+{discriminator}", highlight=False
    )


def convert(file: Path, name: str, checkpoints: Path, licence: str, *, bgr: bool) -> ModelEntry:
    """Convert a checkpoint into canonical files beside the manifest, and return their entry.

    Raises:
        CommandError: the file cannot be converted; nothing is left of it.
    """
    from engine.checkpoints.canonical import write_networks
    from engine.checkpoints.layouts import read_generator_file
    from engine.errors import EngineError

    generator, discriminator = checkpoints / f"{name}.safetensors", checkpoints / f"{name}.discriminator.safetensors"
    try:
        found = read_generator_file(file)
        config = write_networks(found, generator, discriminator, bgr=bgr)
    except EngineError as error:
        raise CommandError(str(error)) from error
    shape = {part: getattr(config, part) for part in ("resolution", "num_ws", "w_dim", "c_dim", "architecture")}
    files = {"file": generator.name, "sha256": sha256_of(generator), "source_sha256": sha256_of(file)}
    if found.discriminator is not None:
        files |= {"discriminator": discriminator.name, "discriminator_sha256": sha256_of(discriminator)}
    return ModelEntry.model_validate({"name": name, "licence": licence, "layout": found.layout, **shape, **files})


@app.command("download")
def download_(
    name: Annotated[str, typer.Argument(help="One of the manifest's public models; models list shows them.")],
    checkpoints: Checkpoints = CHECKPOINTS,
) -> None:
    """Fetch a public model and import it. Mind its licence."""
    from cli.download import download

    manifest = open_manifest(checkpoints)
    if name in manifest.models:
        raise CommandError(f"there is a model {name} already")
    if name not in manifest.public:
        raise CommandError(f"there is no public model {name}; there are: {', '.join(sorted(manifest.public)) or 'none'}")
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
        entry = convert(file, name, checkpoints, public.licence, bgr=public.channel_order == "bgr")
    finally:
        file.unlink()
    manifest.add(entry.model_copy(update={"defaults": public.defaults}))
    if public.sha256 is None:
        manifest.record(name, sha256)
    print_model(entry)
    console.print(f"licence: {public.licence}", highlight=False)


@app.command("list")
def list_(checkpoints: Checkpoints = CHECKPOINTS) -> None:
    """Show the models of the manifest, and the public ones that can be downloaded."""
    manifest = open_manifest(checkpoints)
    table = Table("name", "pixels", "rows of w+", "classes", "layout", "licence", "sha256")
    for entry in manifest.models.values():
        shape = map(str, (entry.resolution, entry.num_ws, entry.c_dim))
        table.add_row(entry.name, *shape, entry.layout, entry.licence, entry.sha256[:12])
    for name, public in manifest.public.items():
        if name not in manifest.models:
            table.add_row(name, "", "", "", "to download", public.licence, (public.sha256 or "")[:12])
    Console().print(table)


@app.command()
def verify(checkpoints: Checkpoints = CHECKPOINTS) -> None:
    """Compare every file with its hash; exit code 1 when one differs or is missing."""
    manifest = open_manifest(checkpoints)
    wrong = [f"{entry.name} {reason}" for entry in manifest.models.values() if (reason := find_defect(manifest, entry))]
    if wrong:
        raise CommandError("; ".join(wrong))
    console.print(f"{len(manifest.models)} models are what the manifest says", highlight=False)


@app.command()
def remove(name: str, checkpoints: Checkpoints = CHECKPOINTS) -> None:
    """Take a model out of the manifest and delete its files."""
    manifest = open_manifest(checkpoints)
    try:
        entry = manifest.get(name)
    except InvalidJob as error:
        raise CommandError(str(error)) from error
    manifest.remove(name)
    for path in manifest.files(entry):
        path.unlink(missing_ok=True)
    console.print(f"{name} is gone")


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
        raise CommandError(str(error)) from error


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
