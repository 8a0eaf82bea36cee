"""From a job's spec to the engine's arguments."""

from dataclasses import fields, replace

import numpy as np
import torch

from engine.checkpoints.load import load_generator
from engine.defaults import preset_options
from engine.drag.loop import to_points
from engine.drag.options import DragOptions
from engine.drag.run import DragRun
from engine.errors import CheckpointDamaged
from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import JobSpec
from worker.edit.inputs import EditStart


def open_generator(manifest: ModelManifest, model: ModelEntry, device: torch.device) -> Generator:
    """The model's generator, its hash verified.

    Raises:
        CheckpointMissing, CheckpointDamaged: the file is not there, or not what the manifest says.
    """
    generator = load_generator(manifest.path(model), device=device, sha256=model.sha256)
    config = generator.config
    if (config.resolution, config.num_ws, config.c_dim) != (model.resolution, model.num_ws, model.c_dim):
        raise CheckpointDamaged(f"checkpoint {model.file} is a generator of another shape than the manifest says")
    return generator


def drag_run(spec: JobSpec, beginning: EditStart, movable: np.ndarray | None) -> DragRun:
    """The drag of a resolved spec that has points, ready to run. Raises InvalidEdit."""
    handles, targets = (to_points(points) for points in model_points(spec, beginning.framing))
    mask = None if movable is None else torch.from_numpy(movable)
    return DragRun(beginning.generator, beginning.w, handles, targets, mask, drag_options(spec))


def model_points(spec: JobSpec, framing: CropTransform) -> tuple[np.ndarray, np.ndarray]:
    """Handles and targets [K, 2] in pixels of the model's image."""
    pairs = np.array([(pair.handle, pair.target) for pair in spec.points], dtype=np.float64).reshape(-1, 2, 2)
    placed = framing.to_model(pairs).clip(0, framing.resolution - 1)  # half a pixel more is the edge's
    return placed[:, 0], placed[:, 1]


def drag_options(spec: JobSpec) -> DragOptions:
    """Return the options of a resolved spec; what a job cannot set, its preset chooses."""
    names = {field.name for field in fields(DragOptions)}
    given = {name: value for name, value in spec.drag.model_dump(exclude_none=True).items() if name in names}
    options = replace(preset_options(spec.drag.preset, len(spec.points), spec.movable is not None), **given)
    return replace(options, solver="adam") if options.latent_weight > 0 else options  # Gauss-Newton goes by points alone


def choose_device(wanted: str) -> torch.device:
    """auto takes the first GPU there is."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)
