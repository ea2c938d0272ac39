"""Position codes of patches: fixed sine-cosine codes and the resampling of stored grids."""

from functools import lru_cache
from math import isqrt

import numpy as np
import torch
from lightly.models.utils import get_2d_sine_cosine_positional_embedding_from_grid
from torch import Tensor
from torch.nn import functional as F


@lru_cache(maxsize=32)
def sincos_2d(dim: int, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Fixed 2-D sine-cosine position code of MAE.

    Args:
        dim: Width D of the code, a multiple of 4.
        grid: Patches along height and width.
        device: Where the code is kept; the CPU if None.

    Returns:
        One code per patch, rows first, shape (L, D).

    Raises:
        ValueError: If `dim` is not a multiple of 4.
    """
    if dim % 4:
        raise ValueError(f'a 2-D sine-cosine position code needs a width divisible by 4, got {dim=}')
    rows, columns = (np.arange(side, dtype=np.float32) for side in grid)
    mesh = np.stack(np.meshgrid(columns, rows), axis=0)  # MAE: the column coordinate goes first
    with torch.inference_mode(False):  # kept for training too, whoever asks first
        code = torch.from_numpy(get_2d_sine_cosine_positional_embedding_from_grid(dim, mesh))
        return code.float().to(device or 'cpu')


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """Fixed 1-D sine-cosine code of numbers: sines first, then cosines.

    Args:
        dim: Width D of the code, a multiple of 2.
        positions: Numbers of any shape (...).

    Returns:
        One code per number, shape (..., D).

    Raises:
        ValueError: If `dim` is not a multiple of 2.
    """
    if dim % 2:
        raise ValueError(f'a 1-D sine-cosine code needs a width divisible by 2, got {dim=}')
    exponents = torch.arange(dim // 2, dtype=torch.float64, device='cpu') / max(1, dim // 2)
    frequencies = (10000.0**-exponents).to(positions.device, torch.float32)
    angles = positions.float().unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def resample_position(position: Tensor, source: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Resample a grid of position codes as DINOv2 does: bicubic, offset 0.1, no antialiasing.

    Args:
        position: Codes of the stored grid, shape (1, L, D).
        source: Height and width of the stored grid.
        target: Height and width of the wanted grid.

    Returns:
        Codes of the wanted grid, shape (1, L', D); the input itself if the grids are equal.
    """
    if source == target:
        return position
    grid = position.float().reshape(1, *source, -1).permute(0, 3, 1, 2)  # (1,L,D) -> (1,D,h,w)
    # The offset is part of the coordinate mapping of the released DINOv2 models, not only of the size.
    scale = tuple((new + 0.1) / old for new, old in zip(target, source, strict=True))
    grid = F.interpolate(grid, scale_factor=scale, mode='bicubic', antialias=False)
    if tuple(grid.shape[-2:]) != target:
        raise ValueError(f'cannot resample a {source} grid of positions to {target}')
    return grid.permute(0, 2, 3, 1).flatten(1, 2).to(position.dtype)  # (1,D,h,w) -> (1,L',D)


def fit_position(stored: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample positions of a square grid, class token first, shape (1, 1 + L, D), to another grid."""
    side = isqrt(stored.shape[1] - 1)
    return torch.cat([stored[:, :1], resample_position(stored[:, 1:], (side, side), grid)], dim=1)
