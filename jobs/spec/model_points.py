"""The points of a job in pixels of the model's image."""

import numpy as np

from jobs.spec.crop_transform import CropTransform
from jobs.spec.job_spec import JobSpec


def model_points(spec: JobSpec, crop_transform: CropTransform) -> tuple[np.ndarray, np.ndarray]:
    """Return handles and targets, each float64 [K, 2] in xy pixels of the model's image."""
    pairs = np.array([(pair.handle, pair.target) for pair in spec.points], dtype=np.float64).reshape(-1, 2, 2)
    placed = crop_transform.to_model(pairs).clip(0, crop_transform.resolution - 1)  # half a pixel more is the edge's
    return placed[:, 0], placed[:, 1]
