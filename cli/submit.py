"""`dragqueue submit`: send a job's JSON and the files that it needs to a running service."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.connection import KEY, URL, Key, Url, connect
from cli.errors import CommandError

LATENT_NAMES = ("w", "ws", "latent", "latents", "latent_code")  # names under which tools save a latent


def submit(
    job: Annotated[Path, typer.Argument(help="The job as JSON; - reads standard input.")],
    url: Url = URL,
    key: Key = KEY,
    image: Annotated[
        Path | None, typer.Option(help="A photo, inverted first; the job's source is then absent or a crop.")
    ] = None,
    latent: Annotated[
        Path | None, typer.Option(help=".safetensors, .npz, .npy or tensors-only .pt with w; becomes the source.")
    ] = None,
    movable: Annotated[Path | None, typer.Option(help="PNG, non-zero where the picture may change.")] = None,
) -> None:
    """Post an edit; prints the job's id."""
    document = read_job(job)
    photo, mask = (None if path is None else path.read_bytes() for path in (image, movable))
    with connect(url, key) as client:
        if latent is not None:
            document["source"] = {"latent": client.upload(read_latent(latent)).sha256}
        typer.echo(client.submit(document, image=photo, movable=mask).id)


def read_job(path: Path) -> dict[str, Any]:
    """Return the job of a JSON file, or of standard input for the path -."""
    try:
        document = json.loads(typer.get_text_stream("stdin").read() if str(path) == "-" else path.read_text())
    except ValueError as error:
        raise CommandError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise CommandError(f"{path} must hold a job, an object with model and source")
    return document


def read_latent(path: Path) -> bytes:
    """Return the bytes of a latent's file; convert a .pt, which no service reads, to safetensors."""
    if path.suffix not in (".pt", ".pth"):
        return path.read_bytes()
    import torch
    from safetensors.torch import save

    try:
        found = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises whatever its readers met
        raise CommandError(f"{path} is not a file of tensors alone: {str(error).splitlines()[0]}") from error
    if isinstance(found, dict):
        found = next((found[name] for name in LATENT_NAMES if name in found), None)
    if not isinstance(found, torch.Tensor):
        raise CommandError(f"{path} must hold a tensor, or one under a name of: {', '.join(LATENT_NAMES)}")
    if not found.is_floating_point() or found.layout is not torch.strided:
        raise CommandError(f"{path}: w must be dense floating-point numbers, is {found.dtype}, {found.layout}")
    return save({"w": found.float().contiguous()})
