"""Adam whose state can be saved between two steps and restored in another process."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdamState:
    """Copies of the variables and of Adam's moments; equal states make equal next steps."""

    values: list[Tensor]
    means: list[Tensor]  # first moments
    squares: list[Tensor]  # second moments
    steps: int

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors, as `read` takes them."""
        lists = {"value": self.values, "mean": self.means, "square": self.squares}
        named = {f"{kind}.{k}": tensor for kind, tensors in lists.items() for k, tensor in enumerate(tensors)}
        return named | {"steps": torch.tensor(self.steps)}

    @classmethod
    def read(cls, tensors: dict[str, Tensor]) -> "AdamState":
        """Make a state of named tensors; other names are ignored.

        Raises:
            KeyError: a tensor is missing.
        """
        count = sum(name.startswith("value.") for name in tensors)
        values, means, squares = ([tensors[f"{kind}.{k}"] for k in range(count)] for kind in ("value", "mean", "square"))
        return cls(values, means, squares, int(tensors["steps"]))


class ResumableAdam:
    """Variables and the Adam optimizer that moves them."""

    def __init__(self, variables: list[Tensor], learning_rate: float, *, fused: bool = False) -> None:
        """Take the variables.

        Args:
            fused: whether to make each step in one kernel, where all variables lie on a GPU.
        """
        self.variables = variables
        self.fused = fused and all(variable.is_cuda for variable in variables)
        self.adam = torch.optim.Adam(variables, lr=learning_rate, fused=True if self.fused else None)

    def minimize(self, loss: Tensor, learning_rate: float | None = None) -> None:
        """Make one step down the gradient of a loss.

        Args:
            learning_rate: replaces the one before; None keeps it.
        """
        if learning_rate is not None:
            self.adam.param_groups[0]["lr"] = learning_rate
        self.step(torch.autograd.grad(loss, self.variables, allow_unused=True))

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Make one step along the gradients of the variables, in their order."""
        for variable, gradient in zip(self.variables, gradients, strict=True):
            variable.grad = copy_like(gradient, variable) if self.fused and gradient is not None else gradient
        self.adam.step()

    def state(self) -> AdamState:
        """Copy the state."""
        return AdamState(
            values=[variable.detach().clone() for variable in self.variables],
            means=[self.moment(variable, "exp_avg") for variable in self.variables],
            squares=[self.moment(variable, "exp_avg_sq") for variable in self.variables],
            steps=max((int(state["step"]) for state in self.adam.state.values()), default=0),
        )

    def moment(self, variable: Tensor, name: str) -> Tensor:
        """Copy one of Adam's moments of a variable; it is zero before the first step."""
        state: dict[str, Any] = self.adam.state.get(variable, {})
        return state[name].clone() if name in state else torch.zeros_like(variable, requires_grad=False)

    @torch.no_grad()
    def restore(self, state: AdamState) -> None:
        """Set the variables and the moments to a state's."""
        for variable, value, mean, square in zip(self.variables, state.values, state.means, state.squares, strict=True):
            variable.copy_(value)
            steps = torch.tensor(float(state.steps), device=variable.device if self.fused else None)
            moments = {"exp_avg": copy_like(mean, variable), "exp_avg_sq": copy_like(square, variable)}
            self.adam.state[variable] = {"step": steps} | moments


def copy_like(tensor: Tensor, variable: Tensor) -> Tensor:
    """Copy a tensor to a variable's device, type and memory layout, which a fused step requires to be equal."""
    return torch.empty_like(variable, requires_grad=False).copy_(tensor)
