"""The interfaces through which solvers plug into the loop, and the solvers there are.

A new solver is a file beside adam.py and gauss_newton.py with a Solver and an Objective, an entry in SOLVERS, and its name in
`DragOptions.solver`. Everything else that depends on the solver is a field of SolverKind.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from engine.drag.adam import AdamSolver, MotionSupervision
from engine.drag.features import FeatureMap
from engine.drag.gauss_newton import REFINED_PX, SLOPE_PX, SPACING, GaussNewton, GaussNewtonObjective, GaussNewtonState
from engine.drag.iteration_data import Points
from engine.drag.latent import LatentParameterization
from engine.drag.options import DragOptions
from engine.networks.latent_statistics import latent_statistics
from engine.networks.stylegan2 import Generator
from engine.resumable_adam import AdamState

SolverState = AdamState | GaussNewtonState


class Solver(Protocol):
    """How the variable of one drag takes its steps."""

    variable: Tensor  # [1, R, V]

    def pass_variables(self) -> Tensor:
        """Return [k, R, V] for the next feature pass: the variable, or a copy of it for each point."""
        ...

    def step(self, update: Any) -> Tensor | None:
        """Change the variable by what the objective computed; return how far points should move, [K, 2] pixels, if known."""
        ...

    def learn(self, surprise: Tensor) -> None:
        """Learn from how the points moved: by how much more than `step` returned, [K, 2] pixels."""
        ...

    def state(self) -> Any:
        """Return a copy of what the next steps depend on."""
        ...

    def restore(self, state: Any) -> None:
        """Go on from a state of a solver of the same drag."""
        ...


class Objective(Protocol):
    """What a solver makes of an iteration's features; one object for each batch."""

    def refine_handles(self, maps: list[FeatureMap], points: Points) -> Tensor:
        """Return the handles [K, 2] once more exactly; `points.handles` are where tracking found them."""
        ...

    def point_losses(self, maps: list[FeatureMap], points: Points) -> Tensor:
        """Return the loss [K] of each point."""
        ...

    def updates(self, losses: Sequence[Tensor], variables: Sequence[Tensor], points: Points) -> Sequence[Any]:
        """Return what each drag's solver takes its step by; called at most once for each evaluation."""
        ...


@dataclass(frozen=True)
class SolverKind:
    """Everything that depends on which solver a drag has."""

    create: Callable[[Generator, LatentParameterization, DragOptions, int, float], Solver]  # the last two: points, scale
    objective: Callable[[DragOptions], Objective]
    read_state: Callable[[dict[str, Tensor]], SolverState]
    state_key: str  # a tensor that only states of this solver have
    patience: int  # iterations without a gain after which a drag is stalled
    disc_spacing: Callable[[DragOptions], float]  # pixels at 512 between the places of a disc that are read
    extra_reach_px: float = 0.0  # pixels at 512 beyond the disc, from which features are read
    points_only: bool = False  # takes neither a mask nor a latent weight
    copies_per_point: bool = False  # a feature pass has a w+ for each point
    capturable: bool = False  # its iterations can be captured as CUDA graphs


def create_adam(
    generator: Generator, latent: LatentParameterization, options: DragOptions, points: int, scale: float
) -> AdamSolver:
    return AdamSolver(latent.origin.clone(), options.learning_rate)


def create_gauss_newton(
    generator: Generator, latent: LatentParameterization, options: DragOptions, points: int, scale: float
) -> GaussNewton:
    deviations = latent.standard_deviations(latent_statistics(generator))
    return GaussNewton(latent.origin.clone(), deviations, points, scale)


SOLVERS = {
    "adam": SolverKind(
        create=create_adam,
        objective=lambda options: MotionSupervision(overstep=options.overstep),
        read_state=AdamState.read,
        state_key="steps",
        patience=30,
        disc_spacing=lambda options: 1.0,
        capturable=True,
    ),
    "gauss-newton": SolverKind(
        create=create_gauss_newton,
        objective=lambda options: GaussNewtonObjective(),
        read_state=GaussNewtonState.read,
        state_key="jacobian",
        patience=5,
        disc_spacing=lambda options: min(SPACING, options.motion_radius / 3),  # slopes need not be known at every pixel
        extra_reach_px=REFINED_PX + SLOPE_PX,
        points_only=True,
        copies_per_point=True,
    ),
}


def read_solver_state(tensors: dict[str, Tensor]) -> SolverState:
    """Return the state that a solver saved. Raises KeyError."""
    for kind in SOLVERS.values():
        if kind.state_key in tensors:
            return kind.read_state(tensors)
    raise KeyError(f"no solver's state: {sorted(tensors)[:10]}")
