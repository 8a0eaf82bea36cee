"""Rulers locate things in a picture without the drag's own tracker."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from benchmarks.faces.detector import detect, load_detector
from engine.defaults import default_feature_resolution
from engine.drag.features import FeatureMap, read_features
from engine.drag.tracking import parabola_vertex
from engine.networks.stylegan2 import Generator, modulate
from jobs.models.manifest import ModelEntry


class Ruler(Protocol):
    """What locates the handles of one picture in another."""

    name: str  # as the tables show it

    def locate(self, start: Tensor, handles: np.ndarray, labels: list[int], result: Tensor) -> np.ndarray:
        """Return where the handles of one picture are in another.

        Args:
            start, result: w+ [1, L, D] of the two pictures.
            handles: [K, 2] xy pixels of the first picture.
            labels: which landmarks the handles are; empty for points that are none.

        Returns:
            [K, 2] xy pixels of the second picture.
        """
        ...


class LandmarkRuler:
    """A ruler for the demo's faces: the landmark detector, which has never seen the generator."""

    name = "landmark detector"

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.detector = load_detector(generator.device)

    def landmarks(self, w: Tensor) -> np.ndarray:
        """Return all landmarks [len(LANDMARKS), 2] of G(w), xy pixels."""
        with torch.no_grad():
            points: np.ndarray = detect(self.detector, self.generator.images(w))[0].cpu().numpy().astype(np.float64)
        return points

    def locate(self, start: Tensor, handles: np.ndarray, labels: list[int], result: Tensor) -> np.ndarray:
        return self.landmarks(result)[labels]


class FeatureRuler:
    """A ruler for checkpoints without geometry.

    It searches the whole picture for the nearest feature of a block that the drag does not use.
    """

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.block = min(2 * default_feature_resolution(generator.config.resolution), generator.config.resolution)
        self.name = f"features of block {self.block}"

    @torch.no_grad()
    def features(self, w: Tensor) -> Tensor:
        """Compute the block's features [1, C, f, f] of w+."""
        layers = self.generator.synthesis.layers(until=self.block, rgb=False)
        return self.generator.synthesis.features(modulate(layers, w), self.block)

    def locate(self, start: Tensor, handles: np.ndarray, labels: list[int], result: Tensor) -> np.ndarray:
        resolution = self.generator.config.resolution
        points = torch.from_numpy(handles).to(start)[:, None]
        wanted = read_features([FeatureMap.whole(self.features(start))], points, resolution)[:, 0]  # [K, C]
        found = self.features(result)[0]  # [C, f, f]
        cost = torch.stack([(found - one[:, None, None]).square().sum(dim=0) for one in wanted])  # [K, f, f]
        size = cost.shape[-1]
        best = cost[:, 1:-1, 1:-1].flatten(1).argmin(dim=1)
        row, column = best // (size - 2) + 1, best % (size - 2) + 1
        cells = torch.stack([column, row], dim=1) + parabola_vertex(cost, torch.ones_like(cost, dtype=torch.bool), row, column)
        return ((cells + 0.5) * (resolution / size) - 0.5).cpu().numpy().astype(np.float64)


def choose_ruler(generator: Generator, model: ModelEntry) -> LandmarkRuler | FeatureRuler:
    """Return the detector for faces as this project draws them, the feature ruler for everything else."""
    return LandmarkRuler(generator) if model.geometry == "faces" else FeatureRuler(generator)
