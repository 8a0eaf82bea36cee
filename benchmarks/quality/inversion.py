"""How well pictures are found in the generator, and whether they can still be dragged afterwards."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.faces.factors import factors_of
from benchmarks.faces.parts import LANDMARKS
from benchmarks.faces.renderer import render
from benchmarks.quality.cases import LARGEST_SEED, Case, random_states
from benchmarks.quality.methods import Ending, Method
from benchmarks.quality.metrics import mse, psnr
from benchmarks.quality.rulers import LandmarkRuler
from benchmarks.quality.studies import Bench, Study, distances
from engine.inversion.inversion import Inversion, InversionOptions
from engine.networks.stylegan2 import Generator
from jobs.spec.job_spec import COLD_STEPS, TUNING_STEPS, WARM_STEPS

DRAWINGS_SEED = 10**6  # no seed of the other studies
COLUMNS = ("psnr_median_db", "psnr_p5_db", "true_px", "within_2_percent", "iterations", "seconds")


def picture_cases(ruler: LandmarkRuler, psi: float, count: int, seed: int) -> Iterator[Case]:
    """A drawing to be found, the w+ that the generator was taught for it, and one landmark to drag to another face's."""
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
class Finder:
    """Inverts pictures as a service job would; keeps the last, which several rows ask for."""

    generator: Generator
    encoder: torch.nn.Module | None
    found: tuple[int, Ending] | None = None

    def project(self, case: Case, steps: int, *, warm: bool) -> Ending:
        """The projection alone."""
        return self.run(case, InversionOptions(steps=steps, tuning_steps=0), warm=warm)

    def whole(self, case: Case) -> Ending:
        """Projection and tuning, with the service's defaults."""
        if self.found is None or self.found[0] != case.index:
            steps = WARM_STEPS if self.encoder is not None else COLD_STEPS
            options = InversionOptions(steps=steps, tuning_steps=TUNING_STEPS)
            self.found = case.index, self.run(case, options, warm=True)
        return self.found[1]

    def run(self, case: Case, options: InversionOptions, *, warm: bool) -> Ending:
        assert case.picture is not None
        began = time.perf_counter()
        start = self.encoder(case.picture) if warm and self.encoder is not None else None
        inversion = Inversion(self.generator, case.picture, options, start=start)
        steps = list(inversion.run())
        return Ending(
            w=inversion.w, generator=inversion.generator, handles=case.handles, iterations=len(steps), stop_reason="inverted",
            seconds=time.perf_counter() - began,
        )  # fmt: skip

    def drag(self, case: Case, default: Method) -> Ending:
        """The case's drag, on what was found of its picture."""
        found = self.whole(case)
        assert found.generator is not None
        handles = LandmarkRuler(found.generator).landmarks(found.w)[case.labels]
        last = self.generator.config.resolution - 1
        ending = default.run(found.generator, replace(case, start=found.w, handles=handles.clip(0, last)))
        return replace(ending, generator=found.generator)


def inversion_study(bench: Bench, count: int, comparisons: int, seed: int) -> Study:
    assert isinstance(bench.ruler, LandmarkRuler)
    finder = Finder(bench.generator, bench.encoder)

    def warm(generator: Generator, case: Case) -> Ending:
        return finder.project(case, WARM_STEPS, warm=True)

    def cold(generator: Generator, case: Case) -> Ending:
        return finder.project(case, COLD_STEPS, warm=False)

    def whole(generator: Generator, case: Case) -> Ending:
        return finder.whole(case)

    def drag(generator: Generator, case: Case) -> Ending:
        return finder.drag(case, bench.default)

    tuned = Method("projection and tuning", whole)
    methods = [
        Method(f"projection, {WARM_STEPS} steps from the encoder", warm),
        tuned,
        Method("drag of the seed", bench.default.run),
        Method("drag of the inverted picture", drag),
        Method(f"projection, {COLD_STEPS} steps from the mean", cold),
    ]

    def score(case: Case, ending: Ending) -> dict[str, float]:
        generator = ending.generator or bench.generator
        if ending.stop_reason != "inverted":
            return distances(case, ending, LandmarkRuler(generator).landmarks(ending.w)[case.labels])
        assert case.picture is not None
        return {"psnr_db": psnr(mse(image(generator, ending.w), case.picture))}

    groups = {"held-out drawings": list(picture_cases(bench.ruler, bench.psi, count, seed))}
    title = "Held-out drawings found in the generator, then one landmark dragged"
    headline = tuple(method.name for method in methods[:-1])
    return Study("inversion", title, groups, methods, score, COLUMNS, tuned, [], headline, comparisons)


@torch.no_grad()
def image(generator: Generator, w: Tensor) -> Tensor:
    return generator.images(w).clamp(-1, 1)
