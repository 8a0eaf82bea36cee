"""The tensors of an iteration of N drags with K points in all: what goes in, what comes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.drag.features import FeatureMap, read_features
from engine.drag.mask_term import MaskTerm


@dataclass(frozen=True, eq=False)
class Reference:
    """What a drag looked like at its start. The tensors are copies: they keep nothing else in memory."""

    features: Tensor  # [K, C], at each handle
    discs: Tensor  # [K, P, C], in the disc around each handle
    held: list[Tensor]  # [1, C, r, r] each: the maps whose change the mask term penalizes


def capture_references(
    maps: Sequence[FeatureMap], held: Sequence[Tensor], handles: Tensor, counts: list[int], offsets: Tensor, resolution: int
) -> list[Reference]:
    """Return the reference of each of N drags that start.

    Args:
        maps: features around all handles, without their graph.
        held: held maps [N, C, r, r] of the mask term.
        handles: [K, 2] xy pixels, of all drags.
        counts: the number of points of each drag.
        offsets: [P, 2] pixels, the disc around a handle.
        resolution: of the image, pixels.
    """
    places = handles[:, None]  # [K, 1, 2]
    features = torch.split(read_features(maps, places, resolution)[:, 0], counts)
    discs = torch.split(read_features(maps, places + offsets, resolution), counts)
    kept = [[each[k : k + 1].detach().clone() for each in held] for k in range(len(counts))]
    return [Reference(*each) for each in zip(map(torch.clone, features), map(torch.clone, discs), kept, strict=True)]


def join_references(references: Sequence[Reference]) -> Reference:
    """Return one reference for the points of all drags, without their held maps."""
    features, discs = ([getattr(each, name) for each in references] for name in ("features", "discs"))
    return Reference(torch.cat(features), torch.cat(discs), [])


@dataclass(frozen=True, eq=False, kw_only=True)
class Points:
    """The K points of a batch, as a solver's objective needs them."""

    handles: Tensor  # [K, 2] xy pixels, where they are now
    targets: Tensor  # [K, 2] xy pixels
    anchored: Tensor  # [K] bool: so near to its target that a point is pulled by its look at the start
    stop_px: Tensor  # [K] pixels, the stop distance of each point's drag
    reference: Reference  # of all points
    offsets: Tensor  # [P, 2] pixels, the disc around a point
    resolution: int  # of the image, pixels
    counts: list[int]  # the number of points of each drag


@dataclass(frozen=True, eq=False, kw_only=True)
class StepInputs:
    """Everything that an iteration depends on and that changes from one iteration to the next."""

    variables: list[Tensor]  # of each drag, [k, R, V]: what its solver changes, or a copy of it for each point
    ws: list[Tensor]  # of each drag, w+ [k, L, D], made of its variables
    handles: Tensor  # [K, 2] xy pixels, where they were last
    centers: Tensor  # [K, 2] xy pixels, around which features are computed
    targets: Tensor  # [K, 2] xy pixels
    moved: list[bool]  # of each drag: whether it has taken a step since its handles were tracked
    references: list[Reference | None]  # of each drag; None: it starts with this iteration
    joined: Reference | None  # of all points; None: some drag starts
    masks: list[MaskTerm | None]  # of each drag
    latent_terms: list[Tensor | None]  # of each drag: a part of its loss

    def tensors(self) -> list[Tensor]:
        """Return every tensor that is an input of drags that have started, in a fixed order."""
        assert self.joined is not None
        held = [each for reference in self.references if reference is not None for each in reference.held]
        shares = [share for mask in self.masks if mask is not None for share in mask.shares]
        points = [self.handles, self.centers, self.targets, self.joined.features, self.joined.discs]
        return [*self.ws, *points, *held, *shares]

    def clone(self) -> "StepInputs":
        """Return inputs of the same shape with tensors of their own; w+ are the variables."""
        assert self.joined is not None
        ws = [w.detach().clone().requires_grad_() for w in self.ws]
        joined = Reference(self.joined.features.clone(), self.joined.discs.clone(), [])
        held = [[each.clone() for each in reference.held] for reference in self.references if reference is not None]
        masks = [mask and replace(mask, shares=[share.clone() for share in mask.shares]) for mask in self.masks]
        return replace(
            self, variables=ws, ws=ws, handles=self.handles.clone(), centers=self.centers.clone(), targets=self.targets.clone(),
            references=[replace(joined, held=each) for each in held], joined=joined, masks=masks,
        )  # fmt: skip


@dataclass(frozen=True, eq=False, kw_only=True)
class Evaluation:
    """What an iteration found, up to the losses."""

    handles: Tensor  # [K, 2] xy pixels, where they are now
    references: list[Reference]  # of each drag
    joined: Reference  # of all points
    losses: list[Tensor]  # of each drag, scalars
    points: Points | None = None  # what the objective needs to compute the updates
    gradients: list[Tensor] | None = None  # of the losses along each drag's w+, where the executor has computed them already


Evaluate = Callable[[StepInputs], Evaluation]  # one iteration up to the losses
