"""From a job's spec to the engine's arguments: device, generator, drag."""

from dataclasses import fields, replace

import numpy as np
import torch

from engine.checkpoints.load import load_generator
from engine.drag.loop import to_points
from engine.drag.options import DragOptions, preset_options
from engine.drag.run import DragRun
from engine.errors import CheckpointDamaged
from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.spec.job_spec import JobSpec
from jobs.spec.model_points import model_points
from worker.edit.inputs import EditStart


def open_generator(manifest: ModelManifest, model: ModelEntry, device: torch.device) -> Generator:
    """Return the model's generator, its hash verified.

    Raises:
        CheckpointMissing, CheckpointDamaged: the file is not there, or not what the manifest says.
    """
    generator = load_generator(manifest.path(model), device=device, sha256=model.sha256)
    config = generator.config
    if (config.resolution, config.num_ws, config.c_dim) != (model.resolution, model.num_ws, model.c_dim):
        raise CheckpointDamaged(f"checkpoint {model.file} is a generator of another shape than the manifest says")
    return generator


def prepare_drag(spec: JobSpec, start: EditStart, movable: np.ndarray | None) -> DragRun:
    """Return the drag of a resolved spec that has points, ready to run. Raises InvalidEdit.

    Args:
        movable: bool [R, R], True where the model's image may change; None: everywhere.
    """
    handles, targets = (to_points(points) for points in model_points(spec, start.crop_transform))
    mask = None if movable is None else torch.from_numpy(movable)
    return DragRun(start.generator, start.w, handles, targets, mask, drag_options(spec))


def drag_options(spec: JobSpec) -> DragOptions:
    """Return the engine's options of a resolved spec: its preset's, and over them what the job says itself."""
    names = {field.name for field in fields(DragOptions)}
    given = {name: value for name, value in spec.drag.model_dump(exclude_none=True).items() if name in names}
    options = replace(preset_options(spec.drag.preset, len(spec.points), spec.movable is not None), **given)
    return replace(options, solver="adam") if options.latent_weight > 0 else options  # Gauss-Newton goes by points alone


def choose_device(wanted: str) -> torch.device:
    """Return the device of that name; `auto` is the first GPU, or the CPU where there is none."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)
