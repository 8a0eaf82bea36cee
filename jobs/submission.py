"""From a posted document to a job that can run: everything that is checked before anything is stored."""

import json
from dataclasses import dataclass

import numpy as np
from pydantic import ValidationError

from jobs.checkpoints import Manifest, ModelEntry
from jobs.errors import InvalidJob, Problem
from jobs.mask import draw_shapes, read_png
from jobs.spec import JobSpec, Movable

MAX_PROBLEMS = 100  # told of one request
MAX_FIELD_LENGTH = 200


@dataclass(frozen=True)
class Submission:
    """A job that passed every check."""

    spec: JobSpec  # resolved
    mask: np.ndarray | None  # the movable mask, bool [R, R]
    mask_posted: bool  # it came as a PNG beside the spec and has yet to be stored


def check_submission(document: object, manifest: Manifest, movable_png: bytes | None = None) -> Submission:
    """Raises InvalidJob with every problem found."""
    spec = parse_spec(document)
    model = manifest.get(spec.model)
    problems = [*point_problems(spec, model), *option_problems(spec, model)]
    if movable_png is not None and spec.movable is not None:
        problems.append(Problem(field="movable", message="give shapes in the job or a PNG part, not both"))
    mask = shapes_mask(spec.movable, model) if movable_png is None else read_png(movable_png, model.resolution)
    if mask is not None and not mask.any():
        problems.append(Problem(field="movable", message="is empty: at least one pixel of the image must be movable"))
    if problems:
        raise InvalidJob(problems)
    return Submission(spec.resolved(model), mask, mask_posted=movable_png is not None)


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
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return path.removeprefix(".")[:MAX_FIELD_LENGTH] or "job"


def point_problems(spec: JobSpec, model: ModelEntry) -> list[Problem]:
    last = model.resolution - 1
    problems = []
    for k, pair in enumerate(spec.points):
        for name, point in (("handle", pair.handle), ("target", pair.target)):
            if not all(0 <= value <= last for value in point):
                message = f"({point[0]:g}, {point[1]:g}) is outside the image: x and y must be 0 to {last} pixels"
                problems.append(Problem(field=f"points[{k}].{name}", message=message))
        if pair.handle == pair.target:
            problems.append(Problem(field=f"points[{k}].target", message="equals its handle: there is nothing to drag"))
    return problems


def option_problems(spec: JobSpec, model: ModelEntry) -> list[Problem]:
    problems = []
    label = spec.source.class_index
    if model.c_dim > 0 and (label is None or label >= model.c_dim):
        problems.append(Problem(field="source.class", message=f"must be 0 to {model.c_dim - 1} for {model.name}, got {label}"))
    if model.c_dim == 0 and label is not None:
        problems.append(Problem(field="source.class", message=f"{model.name} has no classes"))
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
    return problems


def shapes_mask(movable: Movable | None, model: ModelEntry) -> np.ndarray | None:
    if movable is None:
        return None
    if movable.shapes is None:
        raise InvalidJob([Problem(field="movable.upload", message="uploads are not offered; send the PNG as the part movable")])
    return draw_shapes(movable.shapes, model.resolution)
