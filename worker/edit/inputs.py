"""Where an edit begins: a seed, a latent, another job's result, or a photo that is inverted first."""

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from engine.checkpoints.load import load_discriminator, load_encoder
from engine.errors import InvalidEdit
from engine.inversion.inversion import Inversion, InversionOptions, InversionStep, changed_tensors, replace_tensors
from engine.inversion.losses import DiscriminatorLoss, PerceptualLoss, load_lpips
from engine.networks.encoder import Encoder
from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import Crop, JobSpec
from jobs.spec.job_spec import Inversion as InversionSpec


@dataclass(frozen=True)
class Photo:
    """A photo and the square of it that the model sees."""

    image: Image.Image
    framing: CropTransform

    @classmethod
    def read(cls, png: bytes, crop: Crop | None, resolution: int) -> "Photo":
        """Of an upload. Raises InvalidJob."""
        image = Image.open(io.BytesIO(png)).convert("RGB")
        return cls(image, CropTransform.of_photo(crop, image.width, image.height, resolution))

    def crop(self) -> np.ndarray:
        """uint8 [R, R, 3]."""
        return np.asarray(self.framing.cut(self.image))

    def with_crop(self, pixels: np.ndarray) -> np.ndarray:
        """The photo, uint8 [H, W, 3], with the edited crop put back."""
        return np.asarray(self.framing.put_back(self.image, pixels))


@dataclass(frozen=True, kw_only=True)
class JobInputs:
    """What a job builds on, as stored."""

    photo: Photo | None = None
    latent: bytes | None = None  # safetensors with w
    changes: bytes | None = None  # safetensors with a tuned generator's tensors


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """How an inversion stood at a step."""

    phase: str
    iteration: int
    loss: float
    psnr_db: float

    @classmethod
    def of(cls, step: InversionStep) -> "CurvePoint":
        return cls(phase=step.phase, iteration=step.iteration, loss=step.loss, psnr_db=round(step.psnr_db, 3))


@dataclass(frozen=True, kw_only=True)
class EditStart:
    """An edit about to begin."""

    generator: Generator  # the model's, or one tuned to a photo
    w: Tensor  # w+ [1, L, D]
    framing: CropTransform  # of points and mask
    photo: Photo | None = None  # to put the result back into
    changes: dict[str, Tensor] = field(default_factory=dict)  # tensors in which the generator is not the model's
    curve: list[CurvePoint] = field(default_factory=list)  # of its inversion


def begin(spec: JobSpec, generator: Generator, materials: JobInputs) -> EditStart:
    """Where an edit that needs no inversion begins; spec must be resolved. Raises InvalidEdit."""
    framing = CropTransform.whole(generator.config.resolution)
    if spec.source.seed is not None:
        return EditStart(generator=generator, w=seed_latent(spec, generator), framing=framing)
    assert materials.latent is not None
    w = read_latent(materials.latent, generator)
    changes = {} if materials.changes is None else read_tensors(materials.changes)
    tuned = replace_tensors(generator, changes) if changes else generator
    return EditStart(generator=tuned, w=w, framing=framing, photo=materials.photo, changes=changes)


def seed_latent(spec: JobSpec, generator: Generator) -> Tensor:
    """w+ [1, L, D] of a seed."""
    assert spec.source.seed is not None
    assert spec.source.truncation_psi is not None
    return generator.map(seed=spec.source.seed, truncation_psi=spec.source.truncation_psi, class_index=spec.source.class_index)


def read_latent(data: bytes, generator: Generator) -> Tensor:
    """w+ [1, L, D] of stored w or w+. Raises InvalidEdit."""
    w = read_tensors(data)["w"]
    rows, width = generator.config.num_ws, generator.config.w_dim
    if w.ndim != 3 or w.shape[1] not in (1, rows) or w.shape[2] != width:
        raise InvalidEdit(f"the latent has {list(w.shape)} numbers, this model's w+ has [1, {rows}, {width}]")
    return w.to(generator.mapping.w_avg).expand(-1, rows, -1).clone()


def read_tensors(data: bytes) -> dict[str, Tensor]:
    try:
        return load(data)
    except SafetensorError as error:
        raise InvalidEdit(f"what the job builds on cannot be read: {error}") from error


def inversion(
    spec: JobSpec, manifest: ModelManifest, model: ModelEntry, generator: Generator, photo: Photo, lpips: Path | None
) -> Inversion:
    """The inversion of a photo, ready to run; spec must be resolved. Raises CheckpointMissing, CheckpointDamaged."""
    assert spec.inversion is not None
    pixels = torch.from_numpy(photo.crop().copy()).permute(2, 0, 1)[None].to(generator.device)
    target = pixels.float() / 127.5 - 1
    encoder = open_encoder(manifest, model, generator.device)
    start = None if encoder is None else encoder(target)
    perceptual = choose_perceptual(spec.inversion, manifest, model, generator.device, lpips)
    return Inversion(generator, target, inversion_options(spec.inversion), perceptual=perceptual, start=start)


def open_encoder(manifest: ModelManifest, model: ModelEntry, device: torch.device) -> Encoder | None:
    """Raises CheckpointMissing, CheckpointDamaged."""
    if model.encoder is None:
        return None
    return load_encoder(manifest.folder / model.encoder, device=device, sha256=model.encoder_sha256)


def inversion_options(spec: InversionSpec) -> InversionOptions:
    chosen = spec.model_dump(exclude={"perceptual"})
    return InversionOptions(**chosen)


def choose_perceptual(
    spec: InversionSpec, manifest: ModelManifest, model: ModelEntry, device: torch.device, lpips: Path | None
) -> PerceptualLoss | None:
    """auto is LPIPS where the operator gave it, else the model's own discriminator, else pixels alone."""
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


def inverted(generator: Generator, photo: Photo, w: Tensor, changes: bytes | None, curve: list[CurvePoint]) -> EditStart:
    """Where the edit of a photo begins whose inversion is done: w+ [1, L, D], and the tuned tensors."""
    tensors = {} if changes is None else read_tensors(changes)
    tuned = replace_tensors(generator, tensors) if tensors else generator
    w = w.to(generator.mapping.w_avg)
    return EditStart(generator=tuned, w=w, framing=photo.framing, photo=photo, changes=tensors, curve=curve)


Look = Callable[[InversionStep], bool]  # shows a step; True asks to stop there


def invert(running: Inversion, photo: Photo, look: Look, curve: list[CurvePoint] | None = None) -> EditStart:
    """Run an inversion to its end, or until `look` asks to stop; what it has found by then is the beginning.

    Args:
        curve: where its steps are noted; begun already, where the inversion is taken up again.

    Raises:
        InversionDiverged: running.w is the last latent that was one.
    """
    points = [] if curve is None else curve
    for step in running.run():
        points.append(CurvePoint.of(step))
        if look(step):
            break
    tuned = running.generator
    changes = {} if tuned is running.original else changed_tensors(running.original, tuned)
    return EditStart(generator=tuned, w=running.w, framing=photo.framing, photo=photo, changes=changes, curve=points)
