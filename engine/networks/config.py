"""The configs that fix the shapes of the networks. This module needs no PyTorch, so checkpoints can be read without it."""

from dataclasses import dataclass
from typing import Literal, get_args

# "skip" sums the ToRGB layers of all blocks; "orig" and "resnet" have one in the last block alone, "resnet" residual blocks too
Architecture = Literal["skip", "orig", "resnet"]
Precision = Literal["float32", "bfloat16"]  # of the convolutions that a drag runs through
W_SAMPLES, W_SEED = 10_000, 123  # samples of z from which statistics of w are computed, and their seed


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """The blocks of doubling resolution and their widths, of a generator or a discriminator."""

    resolution: int  # R of the images, a power of two from 32 to 1024
    channel_base: int = 32768  # a block at resolution r has min(channel_base / r, channel_max) channels
    channel_max: int = 512
    conv_clamp: float | None = None  # activations are clamped to +-conv_clamp; None does not clamp

    def __post_init__(self) -> None:
        if self.resolution not in (32, 64, 128, 256, 512, 1024):
            raise ValueError(f"resolution must be a power of two from 32 to 1024, got {self.resolution}")
        for name in ("channel_base", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def block_resolutions(self) -> list[int]:
        """The resolutions of the blocks: 4, 8, ... R."""
        return [2**k for k in range(2, self.resolution.bit_length())]

    def channels(self, resolution: int) -> int:
        """Return the number of channels of the block of a resolution."""
        return max(min(self.channel_base // resolution, self.channel_max), 1)


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig(Pyramid):
    """The config that fixes a generator's shape; stored beside its tensors."""

    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    c_dim: int = 0  # number of classes of a conditional generator; 0: unconditional
    architecture: Architecture = "skip"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("z_dim", "w_dim", "mapping_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.c_dim < 0:
            raise ValueError(f"c_dim must be at least 0, got {self.c_dim}")
        if self.architecture not in get_args(Architecture):
            raise ValueError(f"architecture must be one of {get_args(Architecture)}, got {self.architecture!r}")

    @property
    def num_ws(self) -> int:
        """The number of rows of w+: two for each block from 8 up, one for the first, one for the last ToRGB."""
        return 2 * len(self.block_resolutions)

    def has_rgb(self, resolution: int) -> bool:
        """Tell whether the block of a resolution has a ToRGB layer."""
        return self.architecture == "skip" or resolution == self.resolution

    def has_skip(self, resolution: int) -> bool:
        """Tell whether the block of a resolution has a residual branch."""
        return self.architecture == "resnet" and resolution > 4


@dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(Pyramid):
    """The config that fixes a discriminator's shape; stored beside its tensors."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """The config that fixes an encoder's shape; stored beside its tensors."""

    resolution: int  # R of the images; others are resized to it
    w_dim: int
    widths: tuple[int, ...] = (32, 64, 96, 128, 160)  # channels at R/2, R/4, ...
    hidden: int = 256  # width of the fully connected layer

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON has lists
        if self.resolution % 2 ** len(self.widths):
            raise ValueError(f"resolution must be a multiple of {2 ** len(self.widths)}, got {self.resolution}")
        if min(*self.widths, self.w_dim, self.hidden) < 1:
            raise ValueError("widths, w_dim and hidden must be at least 1")
