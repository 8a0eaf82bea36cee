"""From a photo to the generator: projection finds its w (Karras et al. 2020, appendix D), pivotal tuning bends the
generator around it (Roich et al. 2021).

Both are iterators that may be left between two steps. Pictures are float [1, 3, R, R] in [-1, 1].
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import InvalidEdit, InversionDiverged
from engine.inversion.losses import Similarity, pixel_loss
from engine.networks.latent_statistics import latent_statistics
from engine.networks.stylegan2 import Generator
from engine.resumable_adam import Descent, DescentState

RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the projection in which its learning rate rises and falls
NOISE_LENGTH = 0.75  # share of the projection in which w is shaken
LOCALITY_EVERY = 4  # steps; each costs two more pictures
Phase = Literal["projection", "tuning"]
PHASES: tuple[Phase, ...] = ("projection", "tuning")
ENOUGH_DB = 40.0  # tuning ends there: more is hardly seen, and bends the generator further


@dataclass(frozen=True, kw_only=True)
class InversionOptions:
    """How to invert."""

    space: Literal["w", "w+"] = "w"  # one row for all layers, which stays editable; or one each
    steps: int = 300  # of the projection
    learning_rate: float = 0.1  # of the projection's Adam, at its plateau
    exploration: float = 0.05  # how far w is shaken at first, in units of its spread
    perceptual_weight: float = 0.1  # beside the pixels' loss
    optimize_noise: bool = False  # the noise images too; they then belong to the tuned generator
    noise_weight: float = 1e5  # of their autocorrelation
    tuning_steps: int = 150
    tuning_learning_rate: float = 1e-3
    locality_weight: float = 0.1  # of what tuning changes elsewhere; 0 does not look
    locality_reach: float = 0.3  # how far elsewhere is: share of the way to a random w


@dataclass(frozen=True, kw_only=True)
class InversionStep:
    """One step: the picture's latent as it was."""

    phase: Phase
    iteration: int
    w: Tensor  # [1, L, D]
    loss: float
    psnr_db: float


@dataclass(frozen=True, kw_only=True)
class InversionState:
    """A copy of what an inversion's next steps depend on beside its arguments, taken at a step."""

    phase: Phase
    iteration: int
    w: Tensor  # [1, L, D]
    noises: dict[str, Tensor]  # the generator's, where they were optimized
    random: Tensor  # of the random numbers, before the step
    descent: DescentState

    def tensors(self) -> dict[str, Tensor]:
        """By names that `read` understands."""
        where = torch.tensor([PHASES.index(self.phase), self.iteration])
        noises = {f"noise.{name}": noise for name, noise in self.noises.items()}
        return self.descent.tensors() | noises | {"where": where, "w": self.w, "random": self.random}

    @classmethod
    def read(cls, tensors: dict[str, Tensor]) -> "InversionState":
        """Raises KeyError."""
        phase, iteration = tensors["where"].tolist()
        noises = {name.removeprefix("noise."): tensor for name, tensor in tensors.items() if name.startswith("noise.")}
        return cls(
            phase=PHASES[phase], iteration=iteration, w=tensors["w"], noises=noises, random=tensors["random"],
            descent=DescentState.read(tensors),
        )  # fmt: skip


class Inversion:
    """The state of one inversion between steps; `generator` and `w` are what it has found so far."""

    def __init__(
        self, generator: Generator, target: Tensor, options: InversionOptions, *, perceptual: Similarity | None = None,
        start: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Args:
        target: the picture, [1, 3, R, R].
        perceptual: a loss beside the pixels' own.
        start: where the projection begins, w [1, D], such as an encoder's guess; None: the mean of w.
        """
        self.original = generator
        self.generator = generator  # a copy of its own as soon as it is changed
        self.target = target.to(generator.mapping.w_avg)
        self.options = options
        self.perceptual = perceptual
        self.exploration = 0.0 if start is not None else latent_statistics(generator).spread * options.exploration
        w = generator.mapping.w_avg[None] if start is None else start.to(generator.mapping.w_avg)
        self.w = generator.broadcast(w)  # [1, L, D]
        self.random = torch.Generator().manual_seed(0)
        self.phase: Phase = "projection"
        self.iteration = 0
        self.random_before = self.random.get_state()  # at the beginning of the step
        self.descent: Descent | None = None
        self.resumed: InversionState | None = None

    def state(self) -> InversionState:
        """At the step just yielded."""
        assert self.descent is not None
        noises = {name: noise.detach().clone() for name, noise in self.noises().items()} if self.options.optimize_noise else {}
        return InversionState(
            phase=self.phase, iteration=self.iteration, w=self.w, noises=noises, random=self.random_before,
            descent=self.descent.state(),
        )  # fmt: skip

    def restore(self, state: InversionState) -> None:
        """Go on from a state of an inversion with the same arguments; its step comes once more. Raises InvalidEdit."""
        self.phase, self.iteration, self.w, self.resumed = state.phase, state.iteration, state.w.to(self.w), state
        self.random.set_state(state.random)
        if state.noises:
            self.generator = with_tensors(self.original, state.noises)

    def begin(self, phase: Phase, variables: Sequence[Tensor], learning_rate: float) -> range:
        """Be ready to optimize; returns the iterations to come."""
        steps = self.options.steps if phase == "projection" else self.options.tuning_steps
        self.descent, first = Descent(list(variables), learning_rate), 0
        if self.resumed is not None:
            self.descent.restore(self.resumed.descent)
            first, self.resumed = self.iteration, None
        self.phase = phase
        return range(first, steps)

    def reach(self, iteration: int) -> None:
        """A step begins."""
        self.iteration, self.random_before = iteration, self.random.get_state()

    def run(self) -> Iterator[InversionStep]:
        """Projection, then tuning.

        Raises:
            InversionDiverged: the loss stopped being a number; w is the last that was one.
        """
        if self.phase == "projection":
            yield from self.project()
        yield from self.tune()

    def project(self) -> Iterator[InversionStep]:
        """Move w towards the picture; the generator stays, but for its noise images where they are optimized."""
        options = self.options
        variable = self.w[:, : 1 if options.space == "w" else self.w.shape[1]].clone().requires_grad_()
        noises = self.own_noises() if options.optimize_noise else []
        iterations = self.begin("projection", [variable, *noises], options.learning_rate)
        try:
            for iteration in iterations:
                self.reach(iteration)
                done = iteration / options.steps
                shaken = variable + self.shake(variable, done)
                candidate = variable.detach().expand(-1, self.w.shape[1], -1).clone()
                loss, psnr_db = self.reconstruction(shaken.expand(-1, self.w.shape[1], -1))
                if noises:
                    loss = loss + options.noise_weight * torch.stack([autocorrelation(noise) for noise in noises]).sum()
                value = finite(loss)
                self.w = candidate
                yield InversionStep(phase="projection", iteration=iteration, w=self.w, loss=value, psnr_db=psnr_db)
                self.descend(loss, options.learning_rate * projection_rate(done))
                for noise in noises:
                    renormalize(noise)
            candidate = variable.detach().expand(-1, self.w.shape[1], -1).clone()
            self.check(candidate)
            self.w = candidate
        finally:
            for noise in noises:
                noise.requires_grad_(False)

    def tune(self) -> Iterator[InversionStep]:
        """Bend a copy of the generator until it draws the picture at w; elsewhere it should stay as it was."""
        options = self.options
        if options.tuning_steps == 0:
            return
        self.generator = bendable(self.generator)
        weights = list(self.generator.synthesis.parameters())
        for parameter in weights:
            parameter.requires_grad_(True)
        iterations = self.begin("tuning", weights, options.tuning_learning_rate)
        try:
            for iteration in iterations:
                self.reach(iteration)
                loss, psnr_db = self.reconstruction(self.w)
                if options.locality_weight and iteration % LOCALITY_EVERY == 0:
                    loss = loss + options.locality_weight * self.change_elsewhere()
                step = InversionStep(phase="tuning", iteration=iteration, w=self.w, loss=finite(loss), psnr_db=psnr_db)
                yield step
                if psnr_db >= ENOUGH_DB:
                    return
                self.descend(loss)
            self.check(self.w)
        finally:
            self.generator.requires_grad_(False)

    def descend(self, loss: Tensor, learning_rate: float | None = None) -> None:
        assert self.descent is not None
        self.descent.step(loss, learning_rate)

    @torch.no_grad()
    def check(self, ws: Tensor) -> None:
        """Raises InversionDiverged when the last step led to a picture that is none."""
        finite(self.reconstruction(ws)[0])

    def reconstruction(self, ws: Tensor) -> tuple[Tensor, float]:
        """The loss of w+ [1, L, D], and the PSNR of its picture in dB."""
        image = self.generator.images(ws)
        loss = pixel_loss(image, self.target)
        if self.perceptual is not None:
            loss = loss + self.options.perceptual_weight * self.perceptual(image, self.target)
        error = (image.detach().clamp(-1, 1) - self.target).square().mean().item() / 4
        return loss, -10 * math.log10(max(error, 1e-10)) if math.isfinite(error) else math.nan

    def change_elsewhere(self) -> Tensor:
        """How much tuning has changed the picture of a w some way off (PTI's locality regularizer)."""
        config = self.original.config
        z = torch.randn(1, config.z_dim, generator=self.random).to(self.w)
        with torch.no_grad():
            label = self.original.label(0 if config.c_dim else None)
            away = self.w.lerp(self.original.broadcast(self.original.mapping(z, label)), self.options.locality_reach)
            before = self.original.images(away)
        return pixel_loss(self.generator.images(away), before)

    def shake(self, w: Tensor, done: float) -> Tensor:
        """Exploration noise; it fades before the projection ends."""
        strength = self.exploration * max(0.0, 1 - done / NOISE_LENGTH) ** 2
        return torch.randn(w.shape, generator=self.random).to(w) * strength

    def own_noises(self) -> list[Tensor]:
        """The noise images [r, r] of a copy of the generator, ready to be optimized."""
        self.generator = bendable(self.generator)
        return [noise.requires_grad_() for noise in self.noises().values()]

    def noises(self) -> dict[str, Tensor]:
        """The generator's noise images by name."""
        return {name: buffer for name, buffer in self.generator.named_buffers() if name.endswith("noise_const")}


def projection_rate(done: float) -> float:
    """Share of the learning rate: up in a line, down in half a cosine."""
    falling = min(1.0, (1 - done) / RAMP_DOWN)
    return (0.5 - 0.5 * math.cos(math.pi * falling)) * min(1.0, (done + 1e-3) / RAMP_UP)


def autocorrelation(noise: Tensor) -> Tensor:
    """How alike a noise image [r, r] is to itself one pixel on, at every scale down to 8."""
    x, total = noise[None, None], noise.new_zeros([])
    while True:
        total = total + sum((x * x.roll(1, dims=dim)).mean().square() for dim in (2, 3))
        if x.shape[2] <= 8:
            return total
        x = F.avg_pool2d(x, 2)


@torch.no_grad()
def renormalize(noise: Tensor) -> None:
    """Mean 0, mean square 1."""
    noise -= noise.mean()
    noise *= noise.square().mean().clamp(min=1e-12).rsqrt()


def finite(loss: Tensor) -> float:
    value = loss.item()
    if not math.isfinite(value):
        raise InversionDiverged(f"the loss became {value}")
    return value


def changed_tensors(original: Generator, tuned: Generator) -> dict[str, Tensor]:
    """The tensors in which a tuned generator differs from the one it came from, by name."""
    before = original.state_dict()
    return {name: tensor for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])}


def bendable(generator: Generator) -> Generator:
    """A copy whose synthesis network may be changed. It shares the mapping network, and so what is known of w: never move one."""
    return copy.deepcopy(generator, {id(generator.mapping): generator.mapping})


def with_tensors(generator: Generator, tensors: dict[str, Tensor]) -> Generator:
    """A copy of a generator with some of its tensors replaced.

    Raises:
        InvalidEdit: they are none of this generator's.
    """
    known = generator.state_dict()
    for name, tensor in tensors.items():
        if not name.startswith("synthesis.") or name not in known or known[name].shape != tensor.shape:
            raise InvalidEdit(f"the tuned generator's tensor {name[:100]} does not fit this model")
    tuned = bendable(generator)
    tuned.load_state_dict(tensors, strict=False)
    return tuned.requires_grad_(False)
