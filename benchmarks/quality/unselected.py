"""A sheet of edits that nobody picked: seeds 0 to 15, five landmarks each dragged to where seeds 1000 to 1015 have them.

python -m benchmarks.quality.unselected docs/quality/seeds.png
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.faces.parts import LANDMARKS
from benchmarks.quality.cases import Case
from benchmarks.quality.methods import dragging
from benchmarks.quality.report import draw_case
from benchmarks.quality.rulers import LandmarkRuler
from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.settings import REPOSITORY
from worker.edit.drag import choose_device, open_generator

NAMES = ("pupil_left", "pupil_right", "nose_tip", "mouth_left", "mouth_right")
COLUMNS = 8


def main() -> None:
    manifest = ModelManifest.load(REPOSITORY / "checkpoints")
    model = manifest.get("demo-faces")
    generator = open_generator(manifest, model, choose_device("auto"))
    ruler = LandmarkRuler(generator)
    edits = [draw_edit(generator, model, ruler, seed) for seed in range(16)]
    rows = [np.concatenate(edits[first : first + COLUMNS], axis=1) for first in range(0, len(edits), COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(Path(sys.argv[1]))


def draw_edit(generator: Generator, model: ModelEntry, ruler: LandmarkRuler, seed: int) -> np.ndarray:
    labels, last = [LANDMARKS.index(name) for name in NAMES], generator.config.resolution - 1
    start, goal = (generator.map(seed=s, truncation_psi=model.defaults.truncation_psi) for s in (seed, seed + 1000))
    handles, targets = (ruler.landmarks(w)[labels].clip(0, last) for w in (start, goal))
    case = Case(index=seed, start=start, handles=handles, targets=targets, labels=labels)
    ending = dragging("default", model, max_iterations=100).run(generator, case)
    apart = np.linalg.norm(ruler.locate(start, handles, labels, ending.w) - targets, axis=1)
    before = np.linalg.norm(handles - targets, axis=1).mean()
    return draw_case(generator, case, ending, f"seed {seed}: {before:.1f} -> {apart.mean():.1f} px")


if __name__ == "__main__":
    main()
