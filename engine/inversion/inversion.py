"""Inversion: find a photo in the generator.

Projection finds the photo's w (Karras et al. 2020, appendix D). Pivotal tuning then fine-tunes a copy of the generator
around that w, the pivot (Roich et al. 2021). Both may be left between two steps. Images are float [1, 3, R, R] in [-1, 1].
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
from engine.inversion.losses import PerceptualLoss, pixel_loss
from engine.networks.latent_statistics import latent_statistics
from engine.networks.stylegan2 import Generator
from engine.resumable_adam import AdamState, ResumableAdam

RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the projection in which its learning rate rises and falls
EXPLORATION_SHARE = 0.75  # of the projection: exploration noise fades to zero until then
LOCALITY_INTERVAL = 4  # tuning steps between two with the locality regularizer, which renders two more images
TARGET_PSNR_DB = 40.0  # tuning ends there: more is hardly visible, and changes the generator further
Phase = Literal["projection", "tuning"]
PHASES: tuple[Phase, ...] = ("projection", "tuning")


@dataclass(frozen=True, kw_only=True)
class InversionOptions:
    """The options of an inversion."""

    space: Literal["w", "w+"] = "w"  # one row for all layers, which stays editable; or one row each
    steps: int = 300  # of the projection
    learning_rate: float = 0.1  # of the projection's Adam, at its plateau
    exploration: float = 0.05  # standard deviation of the exploration noise at first, in units of the spread of w
    perceptual_weight: float = 0.1  # of the perceptual loss, beside the pixel loss
    optimize_noise: bool = False  # whether to optimize the noise images too; they then belong to the tuned generator
    noise_weight: float = 1e5  # of the noise regularization
    tuning_steps: int = 150
    tuning_learning_rate: float = 1e-3
    locality_weight: float = 0.1  # of the locality regularization; 0 leaves it out
    locality_reach: float = 0.3  # share of the way from the pivot to a random w, where it compares


@dataclass(frozen=True, kw_only=True)
class InversionStep:
    """One step: the latent before it, and how well that latent reconstructs the photo."""

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
    noises: dict[str, Tensor]  # the noise images by name, where they are optimized
    random: Tensor  # state of the random number generator before the step
    optimizer: AdamState

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, as `read` takes them."""
        where = torch.tensor([PHASES.index(self.phase), self.iteration])
        noises = {f"noise.{name}": noise for name, noise in self.noises.items()}
        return self.optimizer.tensors() | noises | {"where": where, "w": self.w, "random": self.random}

    @classmethod
    def read(cls, tensors: dict[str, Tensor]) -> "InversionState":
        """Make a state of named tensors.

        Raises:
            KeyError: a tensor is missing.
        """
        phase, iteration = tensors["where"].tolist()
        noises = {name.removeprefix("noise."): tensor for name, tensor in tensors.items() if name.startswith("noise.")}
        return cls(
            phase=PHASES[phase], iteration=iteration, w=tensors["w"], noises=noises, random=tensors["random"],
            optimizer=AdamState.read(tensors),
        )  # fmt: skip


class Inversion:
    """One inversion between two steps; `generator` and `w` are what it has found so far."""

    def __init__(
        self, generator: Generator, target: Tensor, options: InversionOptions, *, perceptual: PerceptualLoss | None = None,
        start: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Prepare the inversion of an image.

        Args:
            target: the image, [1, 3, R, R].
            perceptual: a loss beside the pixel loss.
            start: where the projection begins, w [1, D], such as an encoder's estimate; None: the mean of w.
        """
        self.original = generator
        self.generator = generator  # replaced by a copy before anything in it changes
        self.target = target.to(generator.mapping.w_avg)
        self.options = options
        self.perceptual = perceptual
        self.exploration_std = 0.0 if start is not None else latent_statistics(generator).spread * options.exploration
        w = generator.mapping.w_avg[None] if start is None else start.to(generator.mapping.w_avg)
        self.w = generator.broadcast(w)  # [1, L, D]
        self.random = torch.Generator().manual_seed(0)
        self.random_before = self.random.get_state()  # at the beginning of the step
        self.phase: Phase = "projection"
        self.iteration = 0
        self.optimizer: ResumableAdam | None = None
        self.restored: InversionState | None = None

    def state(self) -> InversionState:
        """Copy the state at the step just yielded."""
        assert self.optimizer is not None
        optimized = self.noise_images() if self.options.optimize_noise else {}
        return InversionState(
            phase=self.phase, iteration=self.iteration, w=self.w,
            noises={name: noise.detach().clone() for name, noise in optimized.items()},
            random=self.random_before, optimizer=self.optimizer.state(),
        )  # fmt: skip

    def restore(self, state: InversionState) -> None:
        """Continue from a state of an inversion with the same arguments; the step of the state comes once more.

        Raises:
            InvalidEdit: the state's noise images do not fit the generator.
        """
        self.phase, self.iteration, self.w, self.restored = state.phase, state.iteration, state.w.to(self.w), state
        self.random.set_state(state.random)
        if state.noises:
            self.generator = replace_tensors(self.original, state.noises)

    def run(self) -> Iterator[InversionStep]:
        """Project, then tune; yield every step before its variables move.

        Raises:
            InversionDiverged: the loss stopped being a number; w is the last latent with a finite loss.
        """
        if self.phase == "projection":
            yield from self.project()
        yield from self.tune()

    def project(self) -> Iterator[InversionStep]:
        """Move w towards the image; the generator keeps all but its noise images, where they are optimized."""
        options = self.options
        variable = self.w[:, : 1 if options.space == "w" else self.w.shape[1]].clone().requires_grad_()  # [1, 1 or L, D]
        noises = self.trainable_noise_images() if options.optimize_noise else []
        iterations = self.start_phase("projection", [variable, *noises], options.learning_rate)
        try:
            for iteration in iterations:
                self.start_iteration(iteration)
                progress = iteration / options.steps
                explored = variable + self.exploration_noise(variable, progress)  # [1, 1 or L, D]
                w = self.all_rows(variable)
                loss, psnr_db = self.reconstruction_loss(explored.expand(-1, self.w.shape[1], -1))
                if noises:
                    loss = loss + options.noise_weight * torch.stack([noise_regularization(noise) for noise in noises]).sum()
                value = require_finite(loss)
                self.w = w
                yield InversionStep(phase="projection", iteration=iteration, w=self.w, loss=value, psnr_db=psnr_db)
                self.minimize(loss, options.learning_rate * learning_rate_factor(progress))
                for noise in noises:
                    normalize_noise(noise)
            w = self.all_rows(variable)
            self.require_finite_loss(w)
            self.w = w
        finally:
            for noise in noises:
                noise.requires_grad_(False)

    def all_rows(self, variable: Tensor) -> Tensor:
        """Copy the projection's variable [1, 1 or L, D] to w+ [1, L, D]."""
        return variable.detach().expand(-1, self.w.shape[1], -1).clone()

    def tune(self) -> Iterator[InversionStep]:
        """Fine-tune a copy of the generator until it reconstructs the image at the pivot w (pivotal tuning)."""
        options = self.options
        if options.tuning_steps == 0:
            return
        self.generator = copy_for_tuning(self.generator)
        weights = list(self.generator.synthesis.parameters())
        for parameter in weights:
            parameter.requires_grad_(True)
        iterations = self.start_phase("tuning", weights, options.tuning_learning_rate)
        try:
            for iteration in iterations:
                self.start_iteration(iteration)
                loss, psnr_db = self.reconstruction_loss(self.w)
                if options.locality_weight and iteration % LOCALITY_INTERVAL == 0:
                    loss = loss + options.locality_weight * self.locality_loss()
                value = require_finite(loss)
                yield InversionStep(phase="tuning", iteration=iteration, w=self.w, loss=value, psnr_db=psnr_db)
                if psnr_db >= TARGET_PSNR_DB:
                    return
                self.minimize(loss)
            self.require_finite_loss(self.w)
        finally:
            self.generator.requires_grad_(False)

    def start_phase(self, phase: Phase, variables: Sequence[Tensor], learning_rate: float) -> range:
        """Make the optimizer of a phase, restored where a state is; return the iterations to come."""
        steps = self.options.steps if phase == "projection" else self.options.tuning_steps
        self.optimizer, first = ResumableAdam(list(variables), learning_rate), 0
        if self.restored is not None:
            self.optimizer.restore(self.restored.optimizer)
            first, self.restored = self.iteration, None
        self.phase = phase
        return range(first, steps)

    def start_iteration(self, iteration: int) -> None:
        """Note the iteration and the random numbers' state, which a saved state needs."""
        self.iteration, self.random_before = iteration, self.random.get_state()

    def minimize(self, loss: Tensor, learning_rate: float | None = None) -> None:
        """Make one step of the phase's optimizer; None keeps its learning rate."""
        assert self.optimizer is not None
        self.optimizer.minimize(loss, learning_rate)

    @torch.no_grad()
    def require_finite_loss(self, ws: Tensor) -> None:
        """Raise InversionDiverged if the last step led to an image whose loss is not a finite number."""
        loss, _ = self.reconstruction_loss(ws)
        require_finite(loss)

    def reconstruction_loss(self, ws: Tensor) -> tuple[Tensor, float]:
        """Return the loss of w+ [1, L, D], and the PSNR of its image in dB."""
        image = self.generator.images(ws)  # [1, 3, R, R]
        loss = pixel_loss(image, self.target)
        if self.perceptual is not None:
            loss = loss + self.options.perceptual_weight * self.perceptual(image, self.target)
        error = (image.detach().clamp(-1, 1) - self.target).square().mean().item() / 4  # on a scale from 0 to 1
        return loss, -10 * math.log10(max(error, 1e-10)) if math.isfinite(error) else math.nan

    def locality_loss(self) -> Tensor:
        """Return how much tuning has changed the image of a w between the pivot and a random one (Roich et al. 2021, 3.3)."""
        config = self.original.config
        z = torch.randn(1, config.z_dim, generator=self.random).to(self.w)
        with torch.no_grad():
            label = self.original.label(0 if config.c_dim else None)
            random_w = self.original.broadcast(self.original.mapping(z, label))  # [1, L, D]
            w = self.w.lerp(random_w, self.options.locality_reach)  # [1, L, D]
            before = self.original.images(w)  # [1, 3, R, R]
        return pixel_loss(self.generator.images(w), before)

    def exploration_noise(self, w: Tensor, progress: float) -> Tensor:
        """Return noise in the shape of w, which fades to zero before the projection ends.

        Args:
            progress: share of the projection's steps that are done, 0 to 1.
        """
        std = self.exploration_std * max(0.0, 1 - progress / EXPLORATION_SHARE) ** 2
        return torch.randn(w.shape, generator=self.random).to(w) * std

    def trainable_noise_images(self) -> list[Tensor]:
        """Copy the generator and return the copy's noise images [r, r], ready to be optimized."""
        self.generator = copy_for_tuning(self.generator)
        return [noise.requires_grad_() for noise in self.noise_images().values()]

    def noise_images(self) -> dict[str, Tensor]:
        """Return the generator's noise images [r, r] by name."""
        return {name: buffer for name, buffer in self.generator.named_buffers() if name.endswith("noise_const")}


def learning_rate_factor(progress: float) -> float:
    """Return the share of the projection's learning rate: it rises in a line and falls in half a cosine.

    Args:
        progress: share of the steps that are done, 0 to 1.
    """
    ramp = min(1.0, (1 - progress) / RAMP_DOWN)
    return (0.5 - 0.5 * math.cos(math.pi * ramp)) * min(1.0, (progress + 1e-3) / RAMP_UP)


def noise_regularization(noise: Tensor) -> Tensor:
    """Return the squared autocorrelation of a noise image [r, r] with itself one pixel on, at every scale down to 8."""
    x, total = noise[None, None], noise.new_zeros([])  # [1, 1, r, r]
    while True:
        total = total + sum((x * x.roll(1, dims=dim)).mean().square() for dim in (2, 3))
        if x.shape[2] <= 8:
            return total
        x = F.avg_pool2d(x, 2)  # [1, 1, r/2, r/2]


@torch.no_grad()
def normalize_noise(noise: Tensor) -> None:
    """Shift and scale a noise image in place to mean 0 and mean square 1."""
    noise -= noise.mean()
    noise *= noise.square().mean().clamp(min=1e-12).rsqrt()


def require_finite(loss: Tensor) -> float:
    """Return the loss as a number.

    Raises:
        InversionDiverged: it is not finite.
    """
    value = loss.item()
    if not math.isfinite(value):
        raise InversionDiverged(f"the loss became {value}")
    return value


def changed_tensors(original: Generator, tuned: Generator) -> dict[str, Tensor]:
    """Return the tensors by name in which a tuned generator differs from its original."""
    before = original.state_dict()
    return {name: tensor for name, tensor in tuned.state_dict().items() if not torch.equal(tensor, before[name])}


def copy_for_tuning(generator: Generator) -> Generator:
    """Copy a generator so that its synthesis network may change.

    The copy shares the mapping network, which must never change: what is known of the distribution of w stays valid.
    """
    return copy.deepcopy(generator, {id(generator.mapping): generator.mapping})


def replace_tensors(generator: Generator, tensors: dict[str, Tensor]) -> Generator:
    """Return a frozen copy of a generator with some tensors of its synthesis network replaced.

    Raises:
        InvalidEdit: a tensor's name or shape is not one of this generator's.
    """
    known = generator.state_dict()
    for name, tensor in tensors.items():
        if not name.startswith("synthesis.") or name not in known or known[name].shape != tensor.shape:
            raise InvalidEdit(f"the tuned generator's tensor {name[:100]} does not fit this model")
    tuned = copy_for_tuning(generator)
    tuned.load_state_dict(tensors, strict=False)
    return tuned.requires_grad_(False)
