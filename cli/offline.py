"""Rendering and editing with the engine alone: no server, but the same artifacts as a job's."""

import hashlib
import json
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import torch
from torch import Tensor

from cli.artifacts import ArtifactFolder
from cli.errors import CommandError
from engine.drag.loop import steps
from engine.drag.run import DragStep
from engine.errors import EngineError
from engine.inversion.inversion import InversionStep
from engine.media.encoding import encode_image
from engine.media.provenance import DigitalSourceType
from engine.networks.stylegan2 import Generator, NoiseMode, to_pixels
from jobs.errors import JobError, JobNotFound, ManifestInvalid, UploadNotFound
from jobs.models.manifest import MANIFEST, ModelEntry, ModelManifest
from jobs.spec.crop_transform import CropTransform
from jobs.spec.mask_cut import sees_any
from jobs.spec.model_points import model_points
from jobs.spec.movable_mask import movable_mask
from jobs.spec.validation import Submission, check_submission
from jobs.storage.artifacts import StoredObject
from jobs.storage.decoding import Decoded, decode, decode_mask
from jobs.storage.mask_outline import MaskOutline
from jobs.storage.uploads import row_of
from jobs.tables import Job, Upload
from worker.edit.artifacts import ArtifactWriter, PendingArtifact, Timings, with_provenance
from worker.edit.engine_setup import choose_device, open_generator, prepare_drag
from worker.edit.inputs import (
    CurvePoint,
    EditStart,
    JobInputs,
    Photo,
    prepare_inversion,
    start_from_inversion,
    start_without_inversion,
)

RENDER_TOGETHER = 8


class FolderSink:
    """A sink that writes artifacts as files of a folder."""

    def __init__(self, folder: ArtifactFolder) -> None:
        self.folder = folder
        self.stored: list[StoredObject] = []

    def put(self, artifact: PendingArtifact) -> None:
        data = artifact.encode()
        path = self.folder.write(artifact.name, data)
        sha256 = hashlib.sha256(data).hexdigest()
        self.stored.append(
            StoredObject(name=artifact.name, key=str(path), media_type=artifact.media_type, size_bytes=len(data), sha256=sha256)
        )

    def wait_until_stored(self) -> list[StoredObject]:
        return list(self.stored)


def open_model(checkpoints: Path, name: str, device: str = "auto") -> tuple[ModelManifest, ModelEntry, Generator]:
    """Return the manifest of a folder, a model's entry and its generator on a device.

    Raises:
        CommandError: there is no manifest or no such model, or a file is missing or damaged.
    """
    try:
        manifest = ModelManifest.load(checkpoints)
        model = manifest.get(name)
        return manifest, model, open_generator(manifest, model, choose_device(device))
    except ManifestInvalid as error:
        raise CommandError(f"{checkpoints / MANIFEST}: {error}") from error
    except (JobError, EngineError) as error:
        raise CommandError(str(error)) from error


class OfflineInputs:
    """The photo, latent and mask that the command line names, in the place of a job's uploads."""

    def __init__(self) -> None:
        self.kept: dict[str, Decoded] = {}

    def add(self, decoded: Decoded) -> str:
        self.kept[decoded.sha256] = decoded
        return decoded.sha256

    def get_upload(self, sha256: str) -> Upload:
        if sha256 not in self.kept:
            raise UploadNotFound(f"there is no upload {sha256}")
        return Upload(**row_of("offline", self.kept[sha256]))

    def read_upload(self, sha256: str) -> bytes:
        self.get_upload(sha256)
        return self.kept[sha256].data

    def get_outline(self, upload: Upload) -> MaskOutline:
        return MaskOutline.from_bytes(upload.outline or b"")

    def sees_any(self, upload: Upload, crop_transform: CropTransform) -> bool:
        return sees_any([self.read_upload(upload.sha256)], crop_transform, upload.tenant)

    def get_job(self, job_id: UUID) -> Job:
        raise JobNotFound("without a service there are no earlier jobs; give --latent")

    def known_webhooks(self, ids: Collection[UUID]) -> Collection[UUID]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Given:
    """The files that the command line names."""

    image: Path | None = None
    latent: Path | None = None
    movable: Path | None = None


Seen = Callable[[DragStep | InversionStep], None]


class OfflineEdit:
    """One edit from a job's document, checked and ready to run in this process."""

    def __init__(self, document: dict[str, Any], given: Given, checkpoints: Path, lpips: Path | None = None) -> None:
        """Check the document and load the model.

        Raises:
            CommandError: the edit cannot be run; the message names everything that is wrong.
        """
        self.began = time.monotonic()
        self.took_s: float | None = None  # from the model loaded to the last file written
        self.lpips = lpips
        self.manifest, self.model, self.generator = open_model(checkpoints, str(document["model"]))
        self.inputs = OfflineInputs()
        try:
            for name, path in (("upload", given.image), ("latent", given.latent)):
                if path is not None:
                    document["source"][name] = self.inputs.add(decode(path.read_bytes(), path.name))
            mask = None if given.movable is None else decode_mask(given.movable.read_bytes(), given.movable.name)
            if mask is not None:
                self.inputs.add(mask)
            submission = check_submission(document, self.manifest, mask, self.inputs)
        except JobError as error:
            raise CommandError(str(error)) from error
        self.spec, self.mask = submission.spec, self.movable_mask(submission)
        self.targets = model_points(self.spec, submission.crop_transform)[1]  # [K, 2] in pixels of the model's image

    def movable_mask(self, submission: Submission) -> np.ndarray | None:
        """Return where the model's image may change, bool [R, R]; None: everywhere."""
        movable = submission.spec.movable
        if movable is None:
            return None
        png = b"" if movable.upload is None else self.inputs.read_upload(movable.upload)
        return movable_mask(movable, submission.crop_transform, png)

    def run(self, out: Path, seen: Seen) -> DragStep | None:
        """Write the artifacts to a folder, showing each step to `seen`; returns the result, None if nothing was to drag.

        Raises:
            CommandError: the edit cannot be computed.
        """
        loaded, result = time.monotonic(), None
        try:
            start, started_at = self.find_start(seen), time.monotonic()
            with ArtifactWriter(self.spec, start, self.mask, FolderSink(ArtifactFolder(out))) as writer:
                for step in steps(prepare_drag(self.spec, start, self.mask)) if self.spec.points else ():
                    seen(step)
                    if step.stop_reason is None:
                        writer.add_step(step)
                    else:
                        result = step
                load_s, inversion_s, drag_s = loaded - self.began, started_at - loaded, time.monotonic() - started_at
                writer.finish(result, self.model, Timings(load_s=load_s, inversion_s=inversion_s, drag_s=drag_s))
            self.took_s = time.monotonic() - loaded
        except (EngineError, JobError) as error:
            raise CommandError(str(error)) from error
        return result

    def find_start(self, seen: Seen) -> EditStart:
        """Return where the drag starts, after an inversion where a photo was given."""
        source = self.spec.source
        if source.upload is None:
            latent = None if source.latent is None else self.inputs.read_upload(source.latent)
            return start_without_inversion(self.spec, self.generator, JobInputs(latent=latent))
        photo = Photo.read(self.inputs.read_upload(source.upload), source.crop, self.model.resolution)
        inversion = prepare_inversion(self.spec, self.manifest, self.model, self.generator, photo, self.lpips)
        curve = []
        for step in inversion.run():
            curve.append(CurvePoint.of(step))
            seen(step)
        return start_from_inversion(inversion, photo, curve)

    def summary(self, result: DragStep | None) -> str:
        """Return how the edit ended, as JSON."""
        took = {"took_s": None if self.took_s is None else round(self.took_s, 3)}
        if result is None:
            return json.dumps({"stop_reason": None} | took)
        distances = np.linalg.norm(result.handles.cpu().numpy() - self.targets, axis=1)
        ending = {"stop_reason": result.stop_reason, "iteration": result.iteration}
        return json.dumps(ending | took | {"distance_px": [round(float(distance), 3) for distance in distances]})


def map_seeds(generator: Generator, seeds: list[int], truncation_psi: float, class_index: int | None) -> Tensor:
    """Return the w+ [N, L, D] of seeds.

    Raises:
        CommandError: the class does not fit the generator.
    """
    try:
        return torch.cat([generator.map(seed=seed, truncation_psi=truncation_psi, class_index=class_index) for seed in seeds])
    except ValueError as error:
        raise CommandError(f"--class: {error}") from error


@torch.no_grad()
def render(generator: Generator, ws: Tensor, noise_mode: NoiseMode, seen: Callable[[int], None]) -> Tensor:
    """Return the images [N, 3, R, R] of w+ [N, L, D], not clamped."""
    images = []
    for part in torch.split(ws, RENDER_TOGETHER):
        images.append(generator.images(part, noise_mode=noise_mode).cpu())
        seen(len(part))
    return torch.cat(images)


def write_grid(images: Tensor, path: Path) -> None:
    """Write all images into one PNG, as a grid that is about as wide as high."""
    pixels = to_pixels(images)
    columns = int(np.ceil(len(pixels) ** 0.5))
    rows = -(-len(pixels) // columns)
    size = pixels.shape[1]
    grid = np.zeros((rows * size, columns * size, 3), dtype=np.uint8)
    for k, image in enumerate(pixels):
        row, column = divmod(k, columns)
        grid[row * size : (row + 1) * size, column * size : (column + 1) * size] = image
    path.write_bytes(with_provenance(encode_image(grid, ".png"), ".png", DigitalSourceType.GENERATED))


def write_npz(images: Tensor, ws: Tensor, path: Path) -> None:
    """Write the arrays `images` [N, 3, R, R] and `ws` [N, L, D] into a file of exactly this name."""
    with path.open("wb") as file:
        np.savez(file, images=images.numpy(), ws=ws.cpu().numpy())
