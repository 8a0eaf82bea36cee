"""DragGAN's step as its published program makes it, to compare with; written from the paper and a description.

Every step draws the whole picture with gradients for every weight, enlarges the feature block to the size of the picture,
searches and pulls there on whole pixels, and compares the whole enlarged map where the mask is fixed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.networks.stylegan2 import Generator, modulate

ROWS = 6  # of w+ that move
MASK_WEIGHT = 20.0


class OfficialDrag:
    """A drag that makes the published program's steps.

    Args:
        handles, targets: [K, 2] xy pixels.
        fixed: [R, R], 1 where the picture must stay; None: everything may change.
    """

    def __init__(
        self,
        generator: Generator,
        w: Tensor,
        handles: Tensor,
        targets: Tensor,
        fixed: Tensor | None,
        learning_rate: float = 0.002,
    ) -> None:
        self.generator = generator.requires_grad_(True)
        self.size = generator.config.resolution
        self.layers = generator.synthesis.layers()
        self.start = w.detach()
        self.variable = self.start.clone().requires_grad_()
        self.adam = torch.optim.Adam([self.variable], lr=learning_rate)
        self.handles, self.targets, self.fixed = handles.round().to(w), targets.to(w), fixed
        self.first: Tensor | None = None  # the enlarged features of the start
        self.reference: Tensor | None = None  # [K, C]

    def step(self) -> float:
        """Draw, track the handles, descend; return the loss."""
        features = self.draw()
        if self.first is None or self.reference is None:
            self.first = features.detach()
            self.reference = torch.stack([self.first[0, :, int(y), int(x)] for x, y in self.handles])
        else:
            self.handles = self.track_handles(features.detach(), self.reference)
        loss = self.motion_loss(features)
        if self.fixed is not None:
            loss = loss + MASK_WEIGHT * F.l1_loss(features * self.fixed, self.first * self.fixed)
        self.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stubs lack it
        self.adam.step()
        return loss.item()

    def draw(self) -> Tensor:
        """Draw the picture and return the features [1, C, R, R] of block 128, enlarged to the picture's size."""
        ws = torch.cat([self.variable[:, :ROWS], self.start[:, ROWS:]], dim=1)
        modulations, synthesis = modulate(self.layers, ws), self.generator.synthesis
        blocks = dict(synthesis.blocks(modulations, None, "const"))
        self.image = synthesis.sum_rgb(blocks.items(), modulations)
        return F.interpolate(blocks[min(128, self.size)], size=(self.size, self.size), mode="bilinear", align_corners=False)

    def track_handles(self, features: Tensor, reference: Tensor) -> Tensor:
        """Return the pixels [K, 2] around the handles whose features are nearest to the reference [K, C]."""
        radius = round(12 / 512 * self.size)
        found = []
        for (x, y), wanted in zip(self.handles.int().tolist(), reference, strict=True):
            left, top = max(x - radius, 0), max(y - radius, 0)
            patch = features[0, :, top : y + radius + 1, left : x + radius + 1]
            best = int((patch - wanted[:, None, None]).norm(dim=0).argmin())
            found.append((left + best % patch.shape[2], top + best // patch.shape[2]))
        return torch.tensor(found).to(self.handles)

    def motion_loss(self, features: Tensor) -> Tensor:
        """Return the loss of motion supervision: features [1, C, R, R] a pixel ahead shall be as those at the handle."""
        radius, loss = round(3 / 512 * self.size), features.new_zeros([])
        rows, columns = torch.meshgrid(*[torch.arange(self.size, device=features.device)] * 2, indexing="ij")
        for handle, target in zip(self.handles, self.targets, strict=True):
            motion = target - handle
            if motion.norm() <= 1:
                continue
            near = (columns - handle[0]) ** 2 + (rows - handle[1]) ** 2 < radius**2
            pixels = torch.stack([columns[near], rows[near]], dim=1).to(features)  # [P, 2]
            grid = (pixels + motion / (motion.norm() + 1e-7)) / (self.size - 1) * 2 - 1
            there = F.grid_sample(features, grid[None, None], align_corners=True)[0, :, 0]  # [C, P]
            loss = loss + F.l1_loss(there, features[0, :, near].detach())
        return loss
