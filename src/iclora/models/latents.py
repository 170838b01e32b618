"""Pictures as a VAE's input and output, and latents as tokens: the same in every family.

A token is a cell of 2x2 latent pixels; its numbers stand in the order channel, row, column.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from iclora.errors import ModelError

__all__ = ["PACK", "fold", "signal_of", "to_pixels", "unfold"]

PACK = 2
"""Edge of a token in latent pixels."""


def signal_of(pixels: NDArray[np.uint8]) -> Tensor:
    """A picture (height, width, 3) as a VAE reads it: (1, 3, height, width), -1 to 1, float32."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1


def to_pixels(signal: Tensor) -> NDArray[np.uint8]:
    """A VAE's output (3, height, width) as a picture (height, width, 3).

    Raises: ModelError for numbers that are not finite, which would be black.
    """
    if not torch.isfinite(signal).all():
        raise ModelError(
            "the base's VAE paints numbers that are not finite", "Use `dtype` fp32.", "dtype"
        )
    scaled = (signal.float() / 2 + 0.5).clamp(0, 1) * 255
    pixels: NDArray[np.uint8] = scaled.round().byte().permute(1, 2, 0).cpu().numpy()
    return pixels


def fold(latents: Tensor) -> Tensor:
    """Latents (1, c, h, w) as tokens (h / 2 * w / 2, 4 c), row by row."""
    _, c, h, w = latents.shape
    cells = latents.view(c, h // PACK, PACK, w // PACK, PACK).permute(1, 3, 0, 2, 4)
    return cells.reshape(-1, c * PACK**2)


def unfold(tokens: Tensor, columns: int) -> Tensor:
    """Tokens (n, 4 c), so many in a row, as latents (1, c, h, w)."""
    rows = len(tokens) // columns
    cells = tokens.view(rows, columns, -1, PACK, PACK).permute(2, 0, 3, 1, 4)
    return cells.reshape(1, -1, rows * PACK, columns * PACK)
