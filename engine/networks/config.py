"""The configs that fix the shapes of the networks. This module needs no PyTorch, so checkpoints can be read without it."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from engine.printable import quote

# "skip" sums the ToRGB layers of all blocks; "orig" and "resnet" have one in the last block alone, "resnet" residual blocks too
Architecture = Literal["skip", "orig", "resnet"]
Precision = Literal["float32", "bfloat16"]  # of the convolutions that a drag runs through
W_SAMPLES, W_SEED = 10_000, 123  # samples of z from which statistics of w are computed, and their seed
RESOLUTIONS = (32, 64, 128, 256, 512, 1024)
LIMITS = {  # the least and the most of each number of a config: networks that are known have at most a half
    "channel_base": (1, 2**21),
    "channel_max": (1, 2048),
    "z_dim": (1, 1024),
    "w_dim": (1, 1024),
    "mapping_layers": (1, 16),
    "c_dim": (0, 32_768),
    "widths": (1, 2048),
    "hidden": (1, 4096),
}
MAX_WIDTHS = 8  # blocks of an encoder
MAX_CONV_CLAMP = 1e6


def check_dimension(name: str, value: Any) -> None:
    """Raise ValueError unless a value of a config is a whole number within its limits."""
    low, high = LIMITS[name]
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} must be a whole number from {low} to {high}, got {quote(value)}")


def check_conv_clamp(value: Any) -> None:
    """Raise ValueError unless the value is None or a positive number within its limit."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value <= MAX_CONV_CLAMP):
        raise ValueError(f"conv_clamp must be none or a number above 0, at most {MAX_CONV_CLAMP:g}, got {quote(value)}")


@dataclass(frozen=True, kw_only=True)
class Pyramid:
    """The blocks of doubling resolution and their widths, of a generator or a discriminator."""

    resolution: int  # R of the images, a power of two from 32 to 1024
    channel_base: int = 32768  # a block at resolution r has min(channel_base / r, channel_max) channels
    channel_max: int = 512
    conv_clamp: float | None = None  # activations are clamped to +-conv_clamp; None does not clamp

    def __post_init__(self) -> None:
        if type(self.resolution) is not int or self.resolution not in RESOLUTIONS:
            raise ValueError(f"resolution must be a power of two from 32 to 1024, got {quote(self.resolution)}")
        for name in ("channel_base", "channel_max"):
            check_dimension(name, getattr(self, name))
        check_conv_clamp(self.conv_clamp)

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
        for name in ("z_dim", "w_dim", "mapping_layers", "c_dim"):
            check_dimension(name, getattr(self, name))
        if self.architecture not in get_args(Architecture):
            raise ValueError(f"architecture must be one of {get_args(Architecture)}, got {quote(self.architecture)}")

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
        if not isinstance(self.widths, (list, tuple)) or not 1 <= len(self.widths) <= MAX_WIDTHS:
            raise ValueError(f"widths must be a list of 1 to {MAX_WIDTHS} numbers")
        object.__setattr__(self, "widths", tuple(self.widths))  # JSON has lists
        for name, value in (("w_dim", self.w_dim), ("hidden", self.hidden), *(("widths", width) for width in self.widths)):
            check_dimension(name, value)
        step, largest = 2 ** len(self.widths), RESOLUTIONS[-1]
        if type(self.resolution) is not int or not step <= self.resolution <= largest or self.resolution % step:
            raise ValueError(f"resolution must be a multiple of {step}, at most {largest}, got {quote(self.resolution)}")
