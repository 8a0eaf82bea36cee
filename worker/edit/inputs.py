"""What a job builds on, and where its drag starts: a seed, a latent, another job's result, or a photo that is inverted first."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from engine.checkpoints.load import load_discriminator, load_encoder
from engine.errors import InvalidEdit
from engine.inversion.inversion import Inversion, InversionOptions, InversionStep, changed_tensors, replace_tensors
from engine.inversion.losses import DiscriminatorLoss, PerceptualLoss, load_lpips
from engine.inversion.stored_tensors import photo_tensor, read_latent, read_tensors
from engine.networks.encoder import Encoder
from engine.networks.stylegan2 import Generator
from jobs.database import Sessions
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.queue import jobs
from jobs.queue.jobs import Ancestry
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import Crop, JobSpec
from jobs.spec.job_spec import Inversion as InversionSpec
from jobs.spec.movable_mask import movable_mask
from jobs.storage.objects import Storage, upload_key
from jobs.tables import Job
from worker.retry import retry_while_unavailable


@dataclass(frozen=True)
class Photo:
    """A photo and the square of it that the model sees."""

    image: Image.Image
    crop_transform: CropTransform

    @classmethod
    def read(cls, png: bytes, crop: Crop | None, resolution: int) -> "Photo":
        """Return the photo of an upload. Raises InvalidJob."""
        image = Image.open(io.BytesIO(png)).convert("RGB")
        return cls(image, CropTransform.of_photo(crop, image.width, image.height, resolution))

    def crop(self) -> np.ndarray:
        """Return the square as the model sees it, uint8 [R, R, 3]."""
        return np.asarray(self.crop_transform.cut(self.image))

    def with_crop(self, pixels: np.ndarray) -> np.ndarray:
        """Return the photo, uint8 [H, W, 3], with the edited square [R, R, 3] put back."""
        return np.asarray(self.crop_transform.put_back(self.image, pixels))


@dataclass(frozen=True, kw_only=True)
class JobInputs:
    """What a job builds on, as stored; a job that starts from a seed needs none of it."""

    photo: Photo | None = None
    latent: bytes | None = None  # safetensors with w
    tuned_tensors: bytes | None = None  # safetensors with a tuned generator's tensors


class InputFetcher:
    """Fetches what a job builds on; waits for servers that are away."""

    def __init__(self, job: Job, spec: JobSpec, storage: Storage, sessions: Sessions, patience_s: float) -> None:
        """Fetch nothing yet.

        Args:
            patience_s: how long to wait for a server.
        """
        self.job = job
        self.spec = spec
        self.storage = storage
        self.sessions = sessions
        self.patience_s = patience_s

    def fetch_inputs(self, model: ModelEntry) -> JobInputs:
        """Return what the job builds on. Raises ObjectMissing, InvalidJob, JobNotFound, ArtifactNotFound."""
        source = self.spec.source
        if source.upload is not None:
            return JobInputs(photo=self.fetch_photo(source.upload, source.crop, model.resolution))
        if source.latent is not None:
            return JobInputs(latent=self.fetch_object(upload_key(self.job.tenant, source.latent)))
        if source.job is not None:
            return self.fetch_result_of_parent(model)
        return JobInputs()

    def fetch_result_of_parent(self, model: ModelEntry) -> JobInputs:
        """Return what the job's parent left, with the photo that its chain of jobs began with."""
        ancestry = retry_while_unavailable(self.read_ancestry, self.patience_s)
        latent = self.fetch_object(ancestry.latent_key)
        tuned_tensors = None if ancestry.changes_key is None else self.fetch_object(ancestry.changes_key)
        root = None if ancestry.root_spec is None else JobSpec.model_validate(ancestry.root_spec).source
        photo = None
        if root is not None and root.upload is not None:
            photo = self.fetch_photo(root.upload, root.crop, model.resolution)
        return JobInputs(photo=photo, latent=latent, tuned_tensors=tuned_tensors)

    def read_ancestry(self) -> Ancestry:
        with self.sessions() as session:
            return jobs.get_ancestry(session, self.job)

    def fetch_photo(self, upload: str, crop: Crop | None, resolution: int) -> Photo:
        return Photo.read(self.fetch_object(upload_key(self.job.tenant, upload)), crop, resolution)

    def fetch_movable_mask(self, crop_transform: CropTransform) -> np.ndarray | None:
        """Return where the model's image may change, bool [R, R]; None: everywhere. Raises ObjectMissing, InvalidJob."""
        movable = self.spec.movable
        if movable is None:
            return None
        png = b"" if movable.upload is None else self.fetch_object(upload_key(self.job.tenant, movable.upload))
        return movable_mask(movable, crop_transform, png)

    def fetch_object(self, key: str) -> bytes:
        """Return an object's content. Raises ObjectMissing, StorageUnavailable."""
        return retry_while_unavailable(lambda: self.storage.get(key), self.patience_s)


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """How an inversion stood at a step."""

    phase: str
    iteration: int
    loss: float
    psnr_db: float

    @classmethod
    def of(cls, step: InversionStep) -> "CurvePoint":
        """Return the point of a step."""
        return cls(phase=step.phase, iteration=step.iteration, loss=step.loss, psnr_db=round(step.psnr_db, 3))


@dataclass(frozen=True, kw_only=True)
class EditStart:
    """Where a drag starts, and what its artifacts need to know of it."""

    generator: Generator  # the model's, or one tuned to a photo
    w: Tensor  # w+ [1, L, D]
    crop_transform: CropTransform  # of points and mask
    photo: Photo | None = None  # to put the result back into
    tuned_tensors: dict[str, Tensor] = field(default_factory=dict)  # in which the generator is not the model's
    curve: Sequence[CurvePoint] = ()  # of its inversion


def start_without_inversion(spec: JobSpec, generator: Generator, inputs: JobInputs) -> EditStart:
    """Return the start of an edit of a seed, a latent or another job's result; the spec must be resolved. Raises InvalidEdit."""
    crop_transform = CropTransform.whole(generator.config.resolution)
    source = spec.source
    if source.seed is not None:
        assert source.truncation_psi is not None
        w = generator.map(seed=source.seed, truncation_psi=source.truncation_psi, class_index=source.class_index)
        return EditStart(generator=generator, w=w, crop_transform=crop_transform)
    assert inputs.latent is not None
    w = read_latent(inputs.latent, generator)
    tensors = {} if inputs.tuned_tensors is None else read_tensors(inputs.tuned_tensors)
    tuned = replace_tensors(generator, tensors) if tensors else generator
    return EditStart(generator=tuned, w=w, crop_transform=crop_transform, photo=inputs.photo, tuned_tensors=tensors)


def start_from_inversion(inversion: Inversion, photo: Photo, curve: Sequence[CurvePoint]) -> EditStart:
    """Return the start of an edit at what an inversion has found so far.

    Args:
        curve: the inversion's steps.
    """
    tuned = inversion.generator
    tensors = {} if tuned is inversion.original else changed_tensors(inversion.original, tuned)
    return EditStart(
        generator=tuned, w=inversion.w, crop_transform=photo.crop_transform, photo=photo, tuned_tensors=tensors, curve=curve
    )


def start_from_finished_inversion(
    generator: Generator, photo: Photo, w: Tensor, tuned_tensors: bytes | None, curve: Sequence[CurvePoint]
) -> EditStart:
    """Return the same start once more, from what was stored of it: w+ [1, L, D] and the tuned generator's tensors."""
    tensors = {} if tuned_tensors is None else read_tensors(tuned_tensors)
    tuned = replace_tensors(generator, tensors) if tensors else generator
    w = w.to(generator.mapping.w_avg)
    return EditStart(generator=tuned, w=w, crop_transform=photo.crop_transform, photo=photo, tuned_tensors=tensors, curve=curve)


def prepare_inversion(
    spec: JobSpec, manifest: ModelManifest, model: ModelEntry, generator: Generator, photo: Photo, lpips: Path | None
) -> Inversion:
    """Return the inversion of a photo, ready to run; the spec must be resolved. Raises CheckpointMissing, CheckpointDamaged."""
    assert spec.inversion is not None
    target = photo_tensor(photo.crop(), generator.device)
    encoder = open_encoder(manifest, model, generator.device)
    start = None if encoder is None else encoder(target)
    perceptual = open_perceptual_loss(spec.inversion, manifest, model, generator.device, lpips)
    options = InversionOptions(**spec.inversion.model_dump(exclude={"perceptual"}))
    return Inversion(generator, target, options, perceptual=perceptual, start=start)


def open_encoder(manifest: ModelManifest, model: ModelEntry, device: torch.device) -> Encoder | None:
    """Return the model's encoder, None where it has none. Raises CheckpointMissing, CheckpointDamaged."""
    if model.encoder is None:
        return None
    return load_encoder(manifest.folder / model.encoder, device=device, sha256=model.encoder_sha256)


def open_perceptual_loss(
    spec: InversionSpec, manifest: ModelManifest, model: ModelEntry, device: torch.device, lpips: Path | None
) -> PerceptualLoss | None:
    """Return the loss beside the pixels': auto is LPIPS where the operator gave it, else the model's discriminator, else none.

    Raises:
        InvalidEdit: the job asks for one that is not there.
        CheckpointMissing, CheckpointDamaged: the discriminator's file cannot be read.
    """
    wanted = spec.perceptual
    if wanted == "auto":
        wanted = "lpips" if lpips is not None else "discriminator" if model.discriminator is not None else "none"
    if wanted == "lpips":
        if lpips is None:
            raise InvalidEdit("inversion.perceptual: this service has no LPIPS file (DRAGQUEUE_LPIPS_FILE)")
        return load_lpips(lpips).to(device)
    if wanted == "discriminator":
        if model.discriminator is None:
            raise InvalidEdit(f"inversion.perceptual: {model.name} has no discriminator")
        path = manifest.folder / model.discriminator
        return DiscriminatorLoss(load_discriminator(path, device=device, sha256=model.discriminator_sha256))
    return None
