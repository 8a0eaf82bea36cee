"""What fixes the shape of a generator. Apart from the network, so that checkpoints can be read without PyTorch."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """What fixes a generator's shape; stored beside its tensors."""

    resolution: int  # R, a power of two from 32 to 1024
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channel_base: int = 32768  # a block at resolution r has min(channel_base / r, channel_max) channels
    channel_max: int = 512
    conv_clamp: float | None = None  # activations are clamped to +-conv_clamp; None lets them be

    def __post_init__(self) -> None:
        if self.resolution not in (32, 64, 128, 256, 512, 1024):
            raise ValueError(f"resolution must be a power of two from 32 to 1024, got {self.resolution}")
        for name in ("z_dim", "w_dim", "mapping_layers", "channel_base", "channel_max"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def block_resolutions(self) -> list[int]:
        """4, 8, ... R."""
        return [2**k for k in range(2, self.resolution.bit_length())]

    @property
    def num_ws(self) -> int:
        """Rows of w+: two for each block from 8 up, one for the first, one for the last ToRGB."""
        return 2 * len(self.block_resolutions)

    def channels(self, resolution: int) -> int:
        return max(min(self.channel_base // resolution, self.channel_max), 1)
