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

from cli.artifacts import ArtifactFolder
from cli.errors import CommandError
from engine.drag import DragStep
from engine.errors import EngineError
from engine.generator import Generator, NoiseMode, to_pixels
from jobs.checkpoints import Manifest, ModelEntry
from jobs.errors import InvalidJob, JobError
from jobs.repository import StoredObject
from jobs.submission import check_submission
from worker.edit import choose_device, open_generator, start_latent, steps
from worker.recording import Product, Recording, Timings

RENDER_TOGETHER = 8


class FolderSink:
    """Artifacts as files of a folder."""

    def __init__(self, folder: ArtifactFolder) -> None:
        self.folder = folder
        self.stored: list[StoredObject] = []

    def put(self, product: Product) -> None:
        data = product.encode()
        path = self.folder.write(product.name, data)
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
    except (JobError, EngineError) as error:
        raise CommandError(str(error)) from error


class OfflineEdit:
    """One edit from a job's document, checked and ready to run here."""

    def __init__(self, document: dict[str, object], movable_png: bytes | None, checkpoints: Path) -> None:
        """Raises CommandError with everything that is wrong."""
        began = time.monotonic()
        manifest, self.model, self.generator = open_model(checkpoints, str(document["model"]))
        try:
            submission = check_submission(document, manifest, movable_png)
        except InvalidJob as error:
            raise CommandError(str(error)) from error
        self.spec, self.mask = submission.spec, submission.mask
        self.load_s = time.monotonic() - began

    def run(self, out: Path, seen: Callable[[DragStep], None]) -> DragStep | None:
        """Write the artifacts to a folder, showing each step to `seen`; returns the result, None if nothing was to drag.

        Raises:
            CommandError: the edit cannot be computed.
        """
        began, result = time.monotonic(), None
        start = start_latent(self.spec, self.generator)
        try:
            with Recording(self.spec, self.generator, start, self.mask, FolderSink(ArtifactFolder(out))) as recording:
                for step in steps(self.spec, self.generator, start, self.mask) if self.spec.points else ():
                    seen(step)
                    if step.stop_reason is None:
                        recording.add(step)
                    else:
                        result = step
                recording.finish(result, self.model, Timings(load_s=self.load_s, drag_s=time.monotonic() - began))
        except EngineError as error:
            raise CommandError(str(error)) from error
        return result

    def summary(self, result: DragStep | None) -> str:
        """How it ended, as JSON."""
        if result is None:
            return json.dumps({"stop_reason": None})
        targets = np.asarray([pair.target for pair in self.spec.points])
        distances = np.linalg.norm(result.handles.cpu().numpy() - targets, axis=1)
        ending = {"stop_reason": result.stop_reason, "iteration": result.iteration}
        return json.dumps(ending | {"distance_px": [round(float(distance), 3) for distance in distances]})


def map_seeds(generator: Generator, seeds: list[int], truncation_psi: float, class_index: int | None) -> Tensor:
    """w+ [N, L, D] of seeds. Raises CommandError when the class does not fit the generator."""
    try:
        return torch.cat([generator.map(seed=seed, truncation_psi=truncation_psi, class_index=class_index) for seed in seeds])
    except ValueError as error:
        raise CommandError(f"--class: {error}") from error


@torch.no_grad()
def render(generator: Generator, ws: Tensor, noise_mode: NoiseMode, seen: Callable[[int], None]) -> Tensor:
    """Images [N, 3, R, R] of w+ [N, L, D], not clamped."""
    images = []
    for part in torch.split(ws, RENDER_TOGETHER):
        images.append(generator.images(part, noise_mode=noise_mode).cpu())
        seen(len(part))
    return torch.cat(images)


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


def write_npz(images: Tensor, ws: Tensor, path: Path) -> None:
    """Arrays `images` [N, 3, R, R] and `ws` [N, L, D]; the file keeps the name it was given."""
    with path.open("wb") as file:
        np.savez(file, images=images.numpy(), ws=ws.cpu().numpy())
