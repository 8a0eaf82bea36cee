"""Rendering and editing with the engine alone: no server, the same artifacts."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cli.errors import CommandError
from engine.drag import DragStep
from engine.errors import EngineError
from engine.generator import Generator, NoiseMode, to_pixels
from jobs.checkpoints import Manifest, ModelEntry
from jobs.errors import InvalidJob
from jobs.mask import draw_shapes
from jobs.repository import StoredObject
from jobs.submission import check_submission
from worker.edit import choose_device, open_generator, start_latent, steps
from worker.recording import Product, Recording, Timings

RENDER_TOGETHER = 8


class FolderSink:
    """Artifacts as files of a folder; each appears whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.stored: list[StoredObject] = []

    def put(self, product: Product) -> None:
        path = self.folder / product.name
        path.parent.mkdir(parents=True, exist_ok=True)
        data = product.encode()
        part = path.with_name(path.name + ".part")
        part.write_bytes(data)
        part.rename(path)
        sha256 = hashlib.sha256(data).hexdigest()
        self.stored.append(
            StoredObject(name=product.name, key=str(path), media_type=product.media_type, size_bytes=len(data), sha256=sha256)
        )

    def drain(self) -> list[StoredObject]:
        return list(self.stored)


def open_model(checkpoints: Path, name: str, device: str = "auto") -> tuple[Manifest, ModelEntry, Generator]:
    """Raises CommandError: no manifest, no such model, or a file that is missing or damaged."""
    try:
        manifest = Manifest.load(checkpoints)
        model = manifest.get(name)
        return manifest, model, open_generator(manifest, model, choose_device(device))
    except (ValueError, InvalidJob, EngineError) as error:
        raise CommandError(str(error)) from error


def edit(
    document: dict[str, object], movable_png: bytes | None, checkpoints: Path, out: Path, seen: Callable[[DragStep], None]
) -> DragStep | None:
    """Run a job's document here and write its artifacts to a folder; returns the result.

    Raises:
        CommandError: the document is wrong, or the edit cannot be computed.
    """
    began = time.monotonic()
    manifest, model, generator = open_model(checkpoints, str(document["model"]))
    try:
        submission = check_submission(document, manifest, movable_png)
        spec, movable = submission.spec, submission.movable
        if spec.movable is not None and spec.movable.shapes is not None:
            movable = draw_shapes(spec.movable.shapes, model.resolution)
        start, loaded, result = start_latent(spec, generator), time.monotonic(), None
        with Recording(spec, generator, start, movable, FolderSink(out)) as recording:
            for step in steps(spec, generator, start, movable) if spec.points else ():
                seen(step)
                if step.stop_reason is None:
                    recording.add(step)
                else:
                    result = step
            recording.finish(result, model, Timings(load_s=loaded - began, drag_s=time.monotonic() - loaded))
    except (EngineError, InvalidJob) as error:
        raise CommandError(str(error)) from error
    return result


@torch.no_grad()
def render(
    generator: Generator, seeds: list[int], truncation_psi: float, noise_mode: NoiseMode, seen: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """Images [N, 3, R, R], not clamped, and w+ [N, L, D] of seeds."""
    ws = torch.cat([generator.map(seed=seed, truncation_psi=truncation_psi) for seed in seeds])
    images = []
    for part in torch.split(ws, RENDER_TOGETHER):
        images.append(generator.images(part, noise_mode=noise_mode).cpu())
        seen(len(part))
    return torch.cat(images), ws.cpu()


def write_grid(images: Tensor, path: Path) -> None:
    """All images in one picture, about as wide as high."""
    pixels = to_pixels(images)
    columns = int(np.ceil(len(pixels) ** 0.5))
    rows = -(-len(pixels) // columns)
    size = pixels.shape[1]
    grid = np.zeros((rows * size, columns * size, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        row, column = divmod(k, columns)
        grid[row * size : (row + 1) * size, column * size : (column + 1) * size] = image
    Image.fromarray(grid).save(path)


def summary(result: DragStep, targets: list[tuple[float, float]]) -> str:
    """The end of a drag as JSON."""
    distances = np.linalg.norm(result.handles.cpu().numpy() - np.asarray(targets), axis=1)
    return json.dumps(
        {"stop_reason": result.stop_reason, "iteration": result.iteration, "distance_px": [round(float(d), 3) for d in distances]}
    )
