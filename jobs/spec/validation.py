"""From a posted document to a job that can run: everything that is checked before anything is stored."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

import numpy as np
from pydantic import ValidationError

from engine.defaults import EARLY_RESOLUTION, EARLY_ROWS
from jobs.errors import InvalidJob, JobNotFound, ParentUnusable, Problem, UploadNotFound
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import JobSpec, Movable
from jobs.spec.movable_mask import movable_mask, uploaded_mask
from jobs.states import JobState
from jobs.storage.decoding import Decoded
from jobs.tables import Job, Upload

MAX_PROBLEMS = 100  # told of one request
MAX_FIELD_LENGTH = 200
CROP_FORMS = ("literal['center']", "Box", "Landmarks")  # pydantic's names of what source.crop may be; no part of the request


class Inputs(Protocol):
    """What the client has here already: uploads and earlier jobs."""

    def upload(self, sha256: str) -> Upload:
        """Raises UploadNotFound."""
        ...

    def content(self, sha256: str) -> bytes:
        """An upload's bytes. Raises ObjectMissing."""
        ...

    def job(self, job_id: UUID) -> Job:
        """Raises JobNotFound."""
        ...

    def webhooks(self, ids: Collection[UUID]) -> Collection[UUID]:
        """Those of them that are the tenant's."""
        ...


class NoInputs:
    """Where nothing can have been sent before."""

    def upload(self, sha256: str) -> Upload:
        raise UploadNotFound(f"there is no upload {sha256}")

    def content(self, sha256: str) -> bytes:
        raise UploadNotFound(f"there is no upload {sha256}")

    def job(self, job_id: UUID) -> Job:
        raise JobNotFound(f"there is no job {job_id}")

    def webhooks(self, ids: Collection[UUID]) -> Collection[UUID]:
        return ()


@dataclass(frozen=True)
class Submission:
    """A job that passed every check."""

    spec: JobSpec  # resolved
    pool: str  # of the workers that can run it
    framing: CropTransform
    mask: np.ndarray | None  # the movable mask as the model sees it, bool [R, R]
    parent: Job | None = None  # whose result it goes on from


def check_submission(
    document: object, manifest: ModelManifest, posted_mask: Decoded | None = None, inputs: Inputs | None = None
) -> Submission:
    """Every check that can be made before the job runs; posted_mask is one that came beside the document.

    Raises:
        InvalidJob: with every problem found.
        UploadNotFound, JobNotFound, ParentUnusable: what it builds on is not there, or cannot be built on.
    """
    spec, inputs = parse_spec(document), inputs or NoInputs()
    model = manifest.get(spec.model)
    parent = None if spec.source.job is None else usable_parent(inputs.job(spec.source.job), model)
    framing = framing_of(spec, model, inputs)
    problems = [
        *point_problems(spec, framing),
        *option_problems(spec, model),
        *drag_problems(spec, model),
        *latent_problems(spec, model, inputs),
    ]
    problems += webhook_problems(spec, inputs)
    if posted_mask is not None and spec.movable is not None:
        problems.append(Problem(field="movable", message="give shapes in the job or a PNG part, not both"))
    mask = spec_mask(spec, framing, inputs) if posted_mask is None else uploaded_mask(posted_mask.data, framing)
    if mask is not None and not mask.any():
        problems.append(Problem(field="movable", message="is empty: at least one pixel of the image must be movable"))
    if problems:
        raise InvalidJob(problems)
    if posted_mask is not None:
        spec = spec.model_copy(update={"movable": Movable(upload=posted_mask.sha256)})
    return Submission(spec.resolved(model), model.pool, framing, mask, parent)


def usable_parent(parent: Job, model: ModelEntry) -> Job:
    """Raises ParentUnusable."""
    if parent.state != JobState.SUCCEEDED:
        raise ParentUnusable(f"job {parent.id} is {parent.state}: only a job that succeeded can be gone on from")
    if parent.model != model.name:
        raise ParentUnusable(f"job {parent.id} is of model {parent.model}, not {model.name}")
    return parent


def framing_of(spec: JobSpec, model: ModelEntry, inputs: Inputs) -> CropTransform:
    """How the picture that points and mask are given for lies in the model's image."""
    if spec.source.upload is None:
        return CropTransform.whole(model.resolution)
    return CropTransform.of_upload(spec.source.crop, inputs.upload(spec.source.upload), model.resolution)


def spec_mask(spec: JobSpec, framing: CropTransform, inputs: Inputs) -> np.ndarray | None:
    if spec.movable is None:
        return None
    if spec.movable.upload is None:
        return movable_mask(spec.movable, framing)
    upload = inputs.upload(spec.movable.upload)
    if upload.kind != "mask":
        raise InvalidJob([Problem(field="movable.upload", message="is no mask: upload it with ?kind=mask")])
    return movable_mask(spec.movable, framing, inputs.content(upload.sha256))


def parse_spec(document: object) -> JobSpec:
    """Raises InvalidJob."""
    try:
        # by way of JSON, where strict means what it should: no text for numbers, but lists for tuples
        return JobSpec.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        parts = error.errors(include_url=False)[:MAX_PROBLEMS]
        raise InvalidJob([Problem(field=field_path(part["loc"]), message=part["msg"]) for part in parts]) from error


def field_path(location: tuple[int | str, ...]) -> str:
    """("points", 0, "target", 1) -> points[0].target[1]."""
    named = [part for part in location if part not in CROP_FORMS]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named)
    return path.removeprefix(".")[:MAX_FIELD_LENGTH] or "job"


def point_problems(spec: JobSpec, framing: CropTransform) -> list[Problem]:
    right, bottom = framing.width - 1, framing.height - 1
    problems = []
    for k, pair in enumerate(spec.points):
        for name, (x, y) in (("handle", pair.handle), ("target", pair.target)):
            if not (0 <= x <= right and 0 <= y <= bottom):
                message = f"({x:g}, {y:g}) is outside the image: x must be 0 to {right}, y 0 to {bottom} pixels"
            elif not framing.shows(x, y):
                message = f"({x:g}, {y:g}) is outside the crop that the model sees"
            else:
                continue
            problems.append(Problem(field=f"points[{k}].{name}", message=message))
        if pair.handle == pair.target:
            problems.append(Problem(field=f"points[{k}].target", message="equals its handle: there is nothing to drag"))
    return problems


def latent_problems(spec: JobSpec, model: ModelEntry, inputs: Inputs) -> list[Problem]:
    if spec.source.latent is None:
        return []
    latent = inputs.upload(spec.source.latent)
    if latent.kind != "latent":
        return [Problem(field="source.latent", message="is a picture; photos go into source.upload")]
    if latent.height not in (1, model.num_ws) or latent.width != (model.w_dim or latent.width):
        wanted = f"1 or {model.num_ws} rows of {model.w_dim or 'w_dim'} numbers for {model.name}"
        return [Problem(field="source.latent", message=f"must have {wanted}, has {latent.height} of {latent.width}")]
    return []


def webhook_problems(spec: JobSpec, inputs: Inputs) -> list[Problem]:
    known = inputs.webhooks(spec.webhooks)
    return [
        Problem(field=f"webhooks[{k}]", message=f"there is no webhook {webhook}")
        for k, webhook in enumerate(spec.webhooks)
        if webhook not in known
    ]


def option_problems(spec: JobSpec, model: ModelEntry) -> list[Problem]:
    problems = []
    label = spec.source.class_index
    if spec.source.seed is not None and model.c_dim > 0 and (label is None or label >= model.c_dim):
        problems.append(Problem(field="source.class", message=f"must be 0 to {model.c_dim - 1} for {model.name}, got {label}"))
    if model.c_dim == 0 and label is not None:
        problems.append(Problem(field="source.class", message=f"{model.name} has no classes"))
    if spec.inversion is not None and spec.inversion.perceptual == "discriminator" and model.discriminator is None:
        problems.append(Problem(field="inversion.perceptual", message=f"{model.name} was imported without a discriminator"))
    return problems


def drag_problems(spec: JobSpec, model: ModelEntry) -> list[Problem]:
    problems = []
    space = spec.drag.latent_space or ""
    if space.startswith("pca:") and int(space[4:]) > (model.w_dim or int(space[4:])):
        message = f"pca:K takes K from 1 to {model.w_dim} for {model.name}, got {space}"
        problems.append(Problem(field="drag.latent_space", message=message))
    rows, block = spec.drag.trainable_layers, spec.drag.feature_resolution
    if rows is not None and rows > model.num_ws:
        problems.append(
            Problem(field="drag.trainable_layers", message=f"must be 1 to {model.num_ws} for {model.name}, got {rows}")
        )
    blocks = model.block_resolutions
    if block is not None and block not in blocks:
        problems.append(
            Problem(field="drag.feature_resolution", message=f"must be one of {blocks} for {model.name}, got {block}")
        )
    resolved = spec.resolved(model).drag
    if spec.drag.mask_term == "early" and not model.has_early_mask(
        resolved.trainable_layers or 0, resolved.feature_resolution or 0
    ):
        needed = f"a skip generator of at least {2 * EARLY_RESOLUTION} px, at most {EARLY_ROWS} trainable_layers"
        message = f"early needs {needed} and a feature_resolution of at least {EARLY_RESOLUTION}"
        problems.append(Problem(field="drag.mask_term", message=message))
    return problems
