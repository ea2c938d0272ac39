"""Patch positions: sine-cosine codes, resampled position tables, and rotations of queries and keys."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from lightly.models.utils import get_2d_sine_cosine_positional_embedding_from_grid
from torch import Tensor, nn
from torch.nn import functional as F


@lru_cache(maxsize=32)
def sincos_2d(dim: int, grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return MAE's fixed 2-D sine-cosine position codes of a grid's patches, row by row, shape (L, D).

    `dim` is D, a multiple of 4 (ValueError otherwise); the codes live on `device`, the CPU if None.
    """
    if dim % 4:
        raise ValueError(f'a 2-D sine-cosine position code needs a width divisible by 4, got {dim=}')
    rows, columns = (np.arange(side, dtype=np.float32) for side in grid)
    mesh = np.stack(np.meshgrid(columns, rows), axis=0)  # the column coordinate comes first, as in MAE
    with torch.inference_mode(False):  # cached codes must also work in training
        code = torch.from_numpy(get_2d_sine_cosine_positional_embedding_from_grid(dim, mesh))
        return code.float().to(device or 'cpu')


def sincos_1d(dim: int, positions: Tensor) -> Tensor:
    """Return fixed 1-D sine-cosine codes of numbers, (...) -> (..., D), sines before cosines.

    `dim` is D, a multiple of 2 (ValueError otherwise).
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
        position: Codes of the stored grid, shape (1, L, D); returned unchanged if the grids are equal.
        source: Height and width of the stored grid.
        target: Height and width of the target grid.
    """
    if source == target:
        return position
    grid = position.float().reshape(1, *source, -1).permute(0, 3, 1, 2)  # (1,L,D) -> (1,D,h,w)
    # In the released DINOv2 models the offset changes the coordinate mapping, not only the size.
    scale = tuple((new + 0.1) / old for new, old in zip(target, source, strict=True))
    grid = F.interpolate(grid, scale_factor=scale, mode='bicubic', antialias=False)
    if tuple(grid.shape[-2:]) != target:
        raise ValueError(f'cannot resample a {source} grid of positions to {target}')
    return grid.permute(0, 2, 3, 1).flatten(1, 2).to(position.dtype)  # (1,D,h,w) -> (1,L',D)


def fit_position(stored: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample square-grid positions, class token first, shape (1, 1 + L, D), to another grid."""
    side = math.isqrt(stored.shape[1] - 1)
    return torch.cat([stored[:, :1], resample_position(stored[:, 1:], (side, side), grid)], dim=1)


@dataclass(frozen=True)
class RotaryConfig:
    """Settings of DINOv3's rotary positions (Siméoni et al. 2025, section 3.2).

    Attributes:
        base: Ratio of the longest to the shortest rotation period, both measured in half image sides.
        shift: Largest shift of an image's coordinates in training, in those units; None for no shift.
        jitter: Largest factor, at least 1, by which training stretches or shrinks each side separately.
        rescale: Largest such factor for both sides together; DINOv3 was trained with 2.
    """

    base: float = 100.0
    shift: float | None = None
    jitter: float | None = None
    rescale: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.base <= 1 or (self.shift or 0) < 0 or min(self.jitter or 1, self.rescale or 1) < 1:
            raise ValueError(
                'base must be greater than 1, shift at least 0, and jitter and rescale at least 1, got '
                f'{self.base}, {self.shift}, {self.jitter}, {self.rescale}'
            )


class RotaryPosition(nn.Module):
    """Rotation angles of patches, from coordinates that run from -1 to 1 at any image size."""

    def __init__(self, head_dim: int, config: RotaryConfig) -> None:
        """Initialize a RotaryPosition without weights for heads of a width divisible by 4."""
        super().__init__()
        if head_dim % 4:
            raise ValueError(f'rotary positions need a head width divisible by 4, got {head_dim}')
        self.head_dim, self.config = head_dim, config

    @property
    def varies(self) -> bool:
        """Whether training augments the coordinates."""
        return any((self.config.shift, self.config.jitter, self.config.rescale))

    def forward(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        """Compute the rotations of a grid's patches in float32, shape (2, L, head_dim), sines first."""
        rows, columns = (
            (2 * torch.arange(side, dtype=torch.float32, device=device) + 1) / side - 1 for side in grid
        )
        places = torch.cartesian_prod(rows, columns).reshape(-1, 2)  # (L,2), even for one patch
        if self.training and self.varies:
            places = self._vary(places)
        steps = torch.arange(0, 1, 4 / self.head_dim, dtype=torch.float32, device=device)
        angles = (2 * math.pi * places[:, :, None] * self.config.base**-steps).flatten(1)
        angles = angles.repeat(1, 2)  # both halves of a head turn alike
        return torch.stack([angles.sin(), angles.cos()])

    def _vary(self, places: Tensor) -> Tensor:
        """Shift and stretch coordinates with one draw per batch, as in DINOv3."""
        config, uniform = self.config, places.new_empty(5).uniform_(-1, 1)
        if config.shift:
            places = places + config.shift * uniform[:2]
        for factor, drawn in ((config.jitter, uniform[2:4]), (config.rescale, uniform[4:])):
            if factor:
                places = places * (math.log(factor) * drawn).exp()
        return places


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Rotate queries or keys.

    Args:
        x: Queries or keys, shape (B, heads, N, head_dim).
        rotation: Sines and cosines in the dtype of `x`, shape (2, N, head_dim) or (2, B, 1, N, head_dim).
    """
    sin, cos = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
