"""The study of how well pictures are found in the generator, and whether they can still be dragged afterwards."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.faces.factors import factors_of
from benchmarks.faces.parts import LANDMARKS
from benchmarks.faces.renderer import render
from benchmarks.quality.cases import LARGEST_SEED, Case, random_states
from benchmarks.quality.methods import EditedCase, Method
from benchmarks.quality.metrics import mse, psnr
from benchmarks.quality.rulers import LandmarkRuler
from benchmarks.quality.studies import Study, StudyContext, distances
from engine.inversion.inversion import Inversion, InversionOptions
from engine.networks.stylegan2 import Generator
from jobs.spec.job_spec import COLD_STEPS, TUNING_STEPS, WARM_STEPS

DRAWINGS_SEED = 10**6  # no seed of the other studies
COLUMNS = ("psnr_median_db", "psnr_p5_db", "true_px", "within_2_percent", "iterations", "seconds")


def picture_cases(ruler: LandmarkRuler, psi: float, count: int, seed: int) -> Iterator[Case]:
    """Yield cases of a drawing to be found and one landmark to drag to where another face has it.

    The case's start is the w+ that the generator was taught for the drawing.
    """
    generator = ruler.generator
    for k, random in random_states(count, DRAWINGS_SEED + seed):
        z = torch.from_numpy(random.randn(1, generator.config.z_dim)).to(generator.device).float()
        start = generator.broadcast(generator.mapping.truncate(generator.mapping(z), psi))
        goal = generator.map(seed=int(random.randint(LARGEST_SEED)), truncation_psi=psi)
        labels = [int(random.randint(len(LANDMARKS)))]
        handles, targets = (ruler.landmarks(w)[labels] for w in (start, goal))
        picture = render(factors_of(z, psi=psi), generator.config.resolution).images
        yield Case(index=k, start=start, handles=handles, targets=targets, labels=labels, picture=picture)


@dataclass
class PictureInverter:
    """Inverts pictures as a service job would, and keeps the last result, which several rows ask for."""

    generator: Generator
    encoder: torch.nn.Module | None
    latest: tuple[int, EditedCase] | None = None  # case and result

    def project(self, case: Case, steps: int, *, warm: bool) -> EditedCase:
        """Invert by projection alone."""
        return self.run(case, InversionOptions(steps=steps, tuning_steps=0), warm=warm)

    def invert(self, case: Case) -> EditedCase:
        """Invert by projection and tuning, with the service's defaults."""
        if self.latest is None or self.latest[0] != case.index:
            steps = WARM_STEPS if self.encoder is not None else COLD_STEPS
            options = InversionOptions(steps=steps, tuning_steps=TUNING_STEPS)
            self.latest = case.index, self.run(case, options, warm=True)
        return self.latest[1]

    def run(self, case: Case, options: InversionOptions, *, warm: bool) -> EditedCase:
        """Invert the case's picture, from the encoder's guess if `warm`."""
        assert case.picture is not None
        began = time.perf_counter()
        start = self.encoder(case.picture) if warm and self.encoder is not None else None
        inversion = Inversion(self.generator, case.picture, options, start=start)
        steps = list(inversion.run())
        return EditedCase(
            w=inversion.w, generator=inversion.generator, handles=case.handles, iterations=len(steps), stop_reason="inverted",
            seconds=time.perf_counter() - began,
        )  # fmt: skip

    def drag(self, case: Case, default: Method) -> EditedCase:
        """Run the case's drag on its inverted picture."""
        found = self.invert(case)
        assert found.generator is not None
        handles = LandmarkRuler(found.generator).landmarks(found.w)[case.labels]
        last = self.generator.config.resolution - 1
        edited = default.run(found.generator, replace(case, start=found.w, handles=handles.clip(0, last)))
        return replace(edited, generator=found.generator)


def inversion_study(context: StudyContext, count: int, comparisons: int, seed: int) -> Study:
    """Make the study; `count` drawings for the headline rows, `comparisons` for the others."""
    assert isinstance(context.ruler, LandmarkRuler)
    inverter = PictureInverter(context.generator, context.encoder)

    def warm(generator: Generator, case: Case) -> EditedCase:
        return inverter.project(case, WARM_STEPS, warm=True)

    def cold(generator: Generator, case: Case) -> EditedCase:
        return inverter.project(case, COLD_STEPS, warm=False)

    def invert(generator: Generator, case: Case) -> EditedCase:
        return inverter.invert(case)

    def drag(generator: Generator, case: Case) -> EditedCase:
        return inverter.drag(case, context.default)

    tuned = Method("projection and tuning", invert)
    methods = [
        Method(f"projection, {WARM_STEPS} steps from the encoder", warm),
        tuned,
        Method("drag of the seed", context.default.run),
        Method("drag of the inverted picture", drag),
        Method(f"projection, {COLD_STEPS} steps from the mean", cold),
    ]

    def score(case: Case, edited: EditedCase) -> dict[str, float]:
        generator = edited.generator or context.generator
        if edited.stop_reason != "inverted":
            return distances(case, edited, LandmarkRuler(generator).landmarks(edited.w)[case.labels])
        assert case.picture is not None
        return {"psnr_db": psnr(mse(image(generator, edited.w), case.picture))}

    groups = {"held-out drawings": list(picture_cases(context.ruler, context.psi, count, seed))}
    title = "Held-out drawings found in the generator, then one landmark dragged"
    headline = tuple(method.name for method in methods[:-1])
    return Study("inversion", title, groups, methods, score, COLUMNS, tuned, [], headline, comparisons)


@torch.no_grad()
def image(generator: Generator, w: Tensor) -> Tensor:
    """Return the picture [1, 3, R, R] of w+, clamped to [-1, 1]."""
    return generator.images(w).clamp(-1, 1)
