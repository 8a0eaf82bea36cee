"""Parsing and checking a posted job: everything that is checked before anything is stored."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from pydantic import JsonValue, ValidationError

from engine.defaults import EARLY_RESOLUTION, EARLY_ROWS
from jobs.errors import InvalidJob, JobNotFound, ParentUnusable, Problem, UploadNotFound
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import JobSpec, Movable
from jobs.spec.mask_cut import outline_verdict, sees_any
from jobs.spec.movable_mask import check_size, covers_any
from jobs.states import JobState
from jobs.storage.decoding import Decoded
from jobs.storage.mask_outline import MaskOutline
from jobs.storage.uploads import row_of
from jobs.tables import Job, Upload

MAX_PROBLEMS = 100  # listed for one request
MAX_DESCRIBED = 1_000  # problems of which any is listed: pydantic describes all of them or none
MAX_FIELD_LENGTH = 200
CROP_FORMS = ("literal['center']", "Box", "Landmarks")  # pydantic's names of what source.crop may be; no part of the request


class SubmissionInputs(Protocol):
    """The tenant's uploads, jobs and webhooks that a submitted job may refer to."""

    def get_upload(self, sha256: str) -> Upload:
        """Return an upload. Raises UploadNotFound."""
        ...

    def get_outline(self, upload: Upload) -> MaskOutline:
        """Return the outline of a mask. Raises ObjectMissing, DecoderBusy."""
        ...

    def sees_any(self, upload: Upload, crop_transform: CropTransform) -> bool:
        """Return whether the model sees any of a mask, by its pixels. Raises ObjectMissing, DecoderBusy."""
        ...

    def get_job(self, job_id: UUID) -> Job:
        """Return an earlier job. Raises JobNotFound."""
        ...

    def known_webhooks(self, ids: Collection[UUID]) -> Collection[UUID]:
        """Return those of the ids that are webhooks of the tenant."""
        ...


class MaskPixels(Protocol):
    """What is known of the pixels of masks."""

    def get_outline(self, upload: Upload) -> MaskOutline: ...

    def sees_any(self, upload: Upload, crop_transform: CropTransform) -> bool: ...


@dataclass(frozen=True)
class PostedMask:
    """The pixels of a mask that came beside the job's JSON."""

    file: Decoded

    def get_outline(self, upload: Upload) -> MaskOutline:
        return MaskOutline.from_bytes(self.file.outline or b"")

    def sees_any(self, upload: Upload, crop_transform: CropTransform) -> bool:
        return sees_any([self.file.data], crop_transform, self.file.tenant)


class NoInputs:
    """The inputs of a submission that can refer to nothing."""

    def get_upload(self, sha256: str) -> Upload:
        raise UploadNotFound(f"there is no upload {sha256}")

    def get_outline(self, upload: Upload) -> MaskOutline:
        raise UploadNotFound(f"there is no upload {upload.sha256}")

    def sees_any(self, upload: Upload, crop_transform: CropTransform) -> bool:
        raise UploadNotFound(f"there is no upload {upload.sha256}")

    def get_job(self, job_id: UUID) -> Job:
        raise JobNotFound(f"there is no job {job_id}")

    def known_webhooks(self, ids: Collection[UUID]) -> Collection[UUID]:
        return ()


@dataclass(frozen=True)
class Submission:
    """A job that passed every check."""

    spec: JobSpec  # resolved
    pool: str  # of the workers that can run it
    crop_transform: CropTransform
    parent: Job | None = None  # whose result it goes on from


def check_submission(
    document: object, manifest: ModelManifest, posted_mask: Decoded | None = None, inputs: SubmissionInputs | None = None
) -> Submission:
    """Validate a job's document, parsed from JSON before, and check it like `check_spec`."""
    return check_spec(validate_document(document), manifest, posted_mask, inputs)


def check_spec(
    spec: JobSpec, manifest: ModelManifest, posted_mask: Decoded | None = None, inputs: SubmissionInputs | None = None
) -> Submission:
    """Make every check that can be made before the job runs.

    Args:
        posted_mask: a movable mask that came beside the job's JSON.
        inputs: what the job may refer to; nothing by default.

    Raises:
        InvalidJob: with every problem found.
        UploadNotFound, JobNotFound, ParentUnusable: an input is missing, or cannot be built on.
    """
    inputs = inputs or NoInputs()
    model = manifest.get(spec.model)
    parent = None if spec.source.job is None else usable_parent(inputs.get_job(spec.source.job), model)
    crop_transform = make_crop_transform(spec, model, inputs)
    problems = [
        *point_problems(spec, crop_transform),
        *option_problems(spec, model),
        *drag_problems(spec, model),
        *latent_problems(spec, model, inputs),
        *webhook_problems(spec, inputs),
        *movable_problems(spec, crop_transform, posted_mask, inputs),
    ]
    if problems:
        raise InvalidJob(problems)
    if posted_mask is not None:
        spec = spec.model_copy(update={"movable": Movable(upload=posted_mask.sha256)})
    return Submission(spec.resolved(model), model.pool, crop_transform, parent)


def usable_parent(parent: Job, model: ModelEntry) -> Job:
    """Return the parent job if the new job can go on from its result. Raises ParentUnusable."""
    if parent.state != JobState.SUCCEEDED:
        raise ParentUnusable(f"job {parent.public_id} is {parent.state}: only a job that succeeded can be gone on from")
    if parent.model != model.name:
        raise ParentUnusable(f"job {parent.public_id} is of model {parent.model}, not {model.name}")
    return parent


def make_crop_transform(spec: JobSpec, model: ModelEntry, inputs: SubmissionInputs) -> CropTransform:
    """Return the transform from the picture, in whose pixels points and mask are given, to the model's image."""
    if spec.source.upload is None:
        return CropTransform.whole(model.resolution)
    return CropTransform.of_upload(spec.source.crop, inputs.get_upload(spec.source.upload), model.resolution)


def movable_problems(
    spec: JobSpec, crop_transform: CropTransform, posted_mask: Decoded | None, inputs: SubmissionInputs
) -> list[Problem]:
    """Check the movable mask without its pixels, wherever its outline decides. Raises InvalidJob, DecoderBusy."""
    problems = []
    if posted_mask is not None and spec.movable is not None:
        problems.append(Problem(field="movable", message="give shapes in the job or a PNG part, not both"))
    if posted_mask is not None:
        empty = is_empty(Upload(**row_of("", posted_mask)), crop_transform, PostedMask(posted_mask))
    elif spec.movable is None:
        empty = False
    elif spec.movable.shapes is not None:
        shapes = map(crop_transform.to_model_shape, spec.movable.shapes)
        empty = not covers_any(shapes, crop_transform.resolution)
    else:
        empty = is_empty(get_mask(str(spec.movable.upload), inputs), crop_transform, inputs)
    if empty:
        problems.append(Problem(field="movable", message="is empty: at least one pixel of the image must be movable"))
    return problems


def get_mask(sha256: str, inputs: SubmissionInputs) -> Upload:
    """Return the upload that a job names as its mask. Raises InvalidJob, UploadNotFound."""
    upload = inputs.get_upload(sha256)
    if upload.kind != "mask":
        raise InvalidJob([Problem(field="movable.upload", message="is no mask: upload it with ?kind=mask")])
    return upload


def is_empty(mask: Upload, crop_transform: CropTransform, pixels: MaskPixels) -> bool:
    """Return whether the model sees nothing of a mask. Raises InvalidJob when it is of another size than the picture."""
    check_size(mask.width, mask.height, crop_transform)
    verdict = outline_verdict(pixels.get_outline(mask), crop_transform)
    return not (pixels.sees_any(mask, crop_transform) if verdict is None else verdict)


def parse_spec(text: bytes) -> JobSpec:
    """Parse and validate a job's JSON. Raises InvalidJob."""
    try:
        return JobSpec.model_validate_json(text, strict=True)
    except ValidationError as error:
        if not is_no_json(error):
            raise InvalidJob(to_problems(error)) from error
    # Python's parser words the message, and reads some texts that pydantic's does not: UTF-16 and single surrogates
    return validate_document(parse_json(text))


def parse_json(text: bytes) -> JsonValue:
    """Parse the JSON of a job. Raises InvalidJob."""
    try:
        document: JsonValue = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidJob([Problem(field="job", message=f"is not JSON ({error})")]) from error
    return document


def validate_document(document: object) -> JobSpec:
    """Validate a job that was parsed from JSON before. Raises InvalidJob."""
    try:
        # strict validation of JSON accepts lists for tuples and text for UUIDs, strict validation of Python objects does not
        return JobSpec.model_validate_json(json.dumps(document), strict=True)
    except ValidationError as error:
        raise InvalidJob(to_problems(error)) from error


def is_no_json(error: ValidationError) -> bool:
    """Return whether pydantic could not parse the text."""
    return error.error_count() == 1 and error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid"


def to_problems(error: ValidationError) -> list[Problem]:
    """Return the first of pydantic's errors as problems of the request."""
    if error.error_count() > MAX_DESCRIBED:
        return [Problem(field="job", message=f"has {error.error_count()} problems: too many to list any")]
    details = error.errors(include_url=False, include_input=False)[:MAX_PROBLEMS]
    return [Problem(field=field_path(part["loc"]), message=part["msg"]) for part in details]


def field_path(location: tuple[int | str, ...]) -> str:
    """Return a pydantic location as a path in the request: ("points", 0, "target", 1) becomes points[0].target[1]."""
    named = [part for part in location if part not in CROP_FORMS]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in named)
    return path.removeprefix(".")[:MAX_FIELD_LENGTH] or "job"


def point_problems(spec: JobSpec, crop_transform: CropTransform) -> list[Problem]:
    right, bottom = crop_transform.width - 1, crop_transform.height - 1
    problems = []
    for k, pair in enumerate(spec.points):
        for name, (x, y) in (("handle", pair.handle), ("target", pair.target)):
            if not (0 <= x <= right and 0 <= y <= bottom):
                message = f"({x:g}, {y:g}) is outside the image: x must be 0 to {right}, y 0 to {bottom} pixels"
            elif not crop_transform.shows(x, y):
                message = f"({x:g}, {y:g}) is outside the crop that the model sees"
            else:
                continue
            problems.append(Problem(field=f"points[{k}].{name}", message=message))
        if pair.handle == pair.target:
            problems.append(Problem(field=f"points[{k}].target", message="equals its handle: there is nothing to drag"))
    return problems


def latent_problems(spec: JobSpec, model: ModelEntry, inputs: SubmissionInputs) -> list[Problem]:
    if spec.source.latent is None:
        return []
    latent = inputs.get_upload(spec.source.latent)
    if latent.kind != "latent":
        return [Problem(field="source.latent", message="is a picture; photos go into source.upload")]
    if latent.height not in (1, model.num_ws) or latent.width != (model.w_dim or latent.width):
        wanted = f"1 or {model.num_ws} rows of {model.w_dim or 'w_dim'} numbers for {model.name}"
        return [Problem(field="source.latent", message=f"must have {wanted}, has {latent.height} of {latent.width}")]
    return []


def webhook_problems(spec: JobSpec, inputs: SubmissionInputs) -> list[Problem]:
    known = inputs.known_webhooks(spec.webhooks)
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
