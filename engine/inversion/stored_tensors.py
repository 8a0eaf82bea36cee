"""What an edit keeps as safetensors and a later one starts from: latents and tuned generators; and photos as tensors."""

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from engine.errors import InvalidEdit
from engine.networks.stylegan2 import Generator


def encode_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Return named tensors as a safetensors file."""
    return save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})


def read_tensors(data: bytes) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        InvalidEdit: it is none.
    """
    try:
        return load(data)
    except SafetensorError as error:
        raise InvalidEdit(f"what the job builds on cannot be read: {error}") from error


def read_latent(data: bytes, generator: Generator) -> Tensor:
    """Return w+ [1, L, D] of a file that holds w [1, 1, D] or w+ [1, L, D].

    Raises:
        InvalidEdit: the file cannot be read, or its latent is another model's.
    """
    w = read_tensors(data)["w"]
    rows, width = generator.config.num_ws, generator.config.w_dim
    if w.ndim != 3 or w.shape[1] not in (1, rows) or w.shape[2] != width:
        raise InvalidEdit(f"the latent has {list(w.shape)} numbers, this model's w+ has [1, {rows}, {width}]")
    return w.to(generator.mapping.w_avg).expand(-1, rows, -1).clone()


def photo_tensor(pixels: np.ndarray, device: torch.device) -> Tensor:
    """Return uint8 pixels [R, R, 3] as an inversion's target, float [1, 3, R, R] in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].to(device).float() / 127.5 - 1
