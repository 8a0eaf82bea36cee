"""Adam that can be left between two steps and taken up by another process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class DescentState:
    """Copies of the variables and of what Adam remembers of each; equal states go on alike."""

    values: list[Tensor]
    means: list[Tensor]  # first moments
    squares: list[Tensor]  # second moments
    steps: int

    def tensors(self) -> dict[str, Tensor]:
        """By names that `read` understands."""
        kinds = {"value": self.values, "mean": self.means, "square": self.squares}
        named = {f"{kind}.{k}": tensor for kind, tensors in kinds.items() for k, tensor in enumerate(tensors)}
        return named | {"steps": torch.tensor(self.steps)}

    @classmethod
    def read(cls, tensors: dict[str, Tensor]) -> "DescentState":
        """Raises KeyError."""
        count = sum(name.startswith("value.") for name in tensors)
        values, means, squares = ([tensors[f"{kind}.{k}"] for k in range(count)] for kind in ("value", "mean", "square"))
        return cls(values, means, squares, int(tensors["steps"]))


class Descent:
    """Variables and their Adam."""

    def __init__(self, variables: list[Tensor], learning_rate: float, *, fused: bool = False) -> None:
        """Args:
        fused: each step at one go, where a GPU can.
        """
        self.variables = variables
        self.fused = fused and all(variable.is_cuda for variable in variables)
        self.adam = torch.optim.Adam(variables, lr=learning_rate, fused=True if self.fused else None)

    def step(self, loss: Tensor, learning_rate: float | None = None) -> None:
        """One step down; the rate replaces the one before."""
        if learning_rate is not None:
            self.adam.param_groups[0]["lr"] = learning_rate
        self.take(torch.autograd.grad(loss, self.variables, allow_unused=True))

    def take(self, gradients: Sequence[Tensor | None]) -> None:
        """One step of the variables along their gradients."""
        for variable, gradient in zip(self.variables, gradients, strict=True):
            variable.grad = alike(gradient, variable) if self.fused and gradient is not None else gradient
        self.adam.step()

    def state(self) -> DescentState:
        means, squares = ([self.remembered(variable, name) for variable in self.variables] for name in ("exp_avg", "exp_avg_sq"))
        steps = [int(state["step"]) for state in self.adam.state.values()]
        return DescentState([variable.detach().clone() for variable in self.variables], means, squares, max(steps, default=0))

    def remembered(self, variable: Tensor, name: str) -> Tensor:
        known: dict[str, Any] = self.adam.state.get(variable, {})
        return known[name].clone() if name in known else torch.zeros_like(variable, requires_grad=False)

    @torch.no_grad()
    def restore(self, state: DescentState) -> None:
        parts = zip(self.variables, state.values, state.means, state.squares, strict=True)
        for variable, value, mean, square in parts:
            variable.copy_(value)
            steps = torch.tensor(float(state.steps), device=variable.device if self.fused else None)
            moments = {"exp_avg": alike(mean, variable), "exp_avg_sq": alike(square, variable)}
            self.adam.state[variable] = {"step": steps} | moments


def alike(tensor: Tensor, variable: Tensor) -> Tensor:
    """Where and as the variable lies, which a fused step asks for."""
    return torch.empty_like(variable, requires_grad=False).copy_(tensor)
