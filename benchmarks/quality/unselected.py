"""Draws a sheet of edits that nobody picked.

Of each seed from 0 to 15 five landmarks are dragged to where the seed 1000 higher has them.

python -m benchmarks.quality.unselected docs/quality/seeds.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.faces.parts import LANDMARKS
from benchmarks.quality.cases import Case
from benchmarks.quality.methods import drag_method
from benchmarks.quality.report import draw_case
from benchmarks.quality.rulers import LandmarkRuler
from engine.networks.stylegan2 import Generator
from jobs.models.manifest import ModelEntry, ModelManifest
from jobs.settings import REPOSITORY
from worker.edit.engine_setup import choose_device, open_generator

NAMES = ("pupil_left", "pupil_right", "nose_tip", "mouth_left", "mouth_right")
COLUMNS = 8  # edits in a row


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.unselected", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="PNG file of the sheet")
    parser.add_argument("--seeds", type=int, default=16, help="edits on the sheet")
    return parser


def main() -> None:
    """Run the edits and write the sheet."""
    given = make_parser().parse_args()
    manifest = ModelManifest.load(REPOSITORY / "checkpoints")
    model = manifest.get("demo-faces")
    generator = open_generator(manifest, model, choose_device("auto"))
    ruler = LandmarkRuler(generator)
    edits = [draw_edit(generator, model, ruler, seed) for seed in range(given.seeds)]
    rows = [np.concatenate(edits[first : first + COLUMNS], axis=1) for first in range(0, len(edits), COLUMNS)]
    Image.fromarray(np.concatenate(rows)).save(given.out)


def draw_edit(generator: Generator, model: ModelEntry, ruler: LandmarkRuler, seed: int) -> np.ndarray:
    """Run a seed's edit; return its picture before above the one after, [H, W, 3]."""
    labels, last = [LANDMARKS.index(name) for name in NAMES], generator.config.resolution - 1
    start, goal = (generator.map(seed=s, truncation_psi=model.defaults.truncation_psi) for s in (seed, seed + 1000))
    handles, targets = (ruler.landmarks(w)[labels].clip(0, last) for w in (start, goal))
    case = Case(index=seed, start=start, handles=handles, targets=targets, labels=labels)
    edited = drag_method("default", model, max_iterations=100).run(generator, case)
    apart = np.linalg.norm(ruler.locate(start, handles, labels, edited.w) - targets, axis=1)
    before = np.linalg.norm(handles - targets, axis=1).mean()
    return draw_case(generator, case, edited, f"seed {seed}: {before:.1f} -> {apart.mean():.1f} px")


if __name__ == "__main__":
    main()
