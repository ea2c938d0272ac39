"""Read a backbone's tokens: reduce slots, pool images to vectors, and average over orientations."""

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from explora_geo.models.vit import Features

Slots = Literal['mean', 'concat']
Tokens = Literal['cls', 'avg', 'cls+avg']


def reduce_slots(patches: Tensor, mode: Slots = 'mean') -> Tensor:
    """Reduce the slots of patches, shape (B, S, L, D) -> (B, L, D) or (B, L, S·D).

    `mode` is `mean` over slots, or `concat` along the width; ValueError for other names.
    """
    if mode not in ('mean', 'concat'):
        raise ValueError(f'slots must be mean or concat, got {mode!r}')
    return patches.mean(1) if mode == 'mean' else patches.transpose(1, 2).flatten(2)


def to_map(features: Features, grid: tuple[int, int], slots: Slots) -> Tensor:
    """Arrange patch tokens as a map with slots reduced, shape (B, D, h, w)."""
    return rearrange(reduce_slots(features.patches, slots), 'b (h w) d -> b d h w', h=grid[0])


def pool(features: list[Features], tokens: Tokens = 'avg', slots: Slots = 'mean') -> Tensor:
    """Pool each image to a vector, shape (B, F): D per class token, D or S·D for the mean patch.

    Args:
        features: Features of one or more blocks, last block last.
        tokens: Class tokens of the blocks, mean patch of the last block, or both.
        slots: Slot reduction before patches are averaged.

    Raises:
        ValueError: If a name is unknown.
    """
    if tokens not in ('cls', 'avg', 'cls+avg'):
        raise ValueError(f'tokens must be cls, avg or cls+avg, got {tokens!r}')
    parts = [f.cls for f in features] if 'cls' in tokens else []
    if 'avg' in tokens:
        parts.append(reduce_slots(features[-1].patches, slots).mean(1))
    return torch.cat(parts, dim=1)


def evenly_spaced(depth: int, count: int = 4) -> list[int]:
    """Return the indices of evenly spaced blocks including the last: 2, 5, 8, 11 of twelve."""
    return [max(depth * (i + 1) // count - 1, 0) for i in range(count)]


def check_turns(turns: int) -> int:
    """Check and return a number of orientations; a tile seen from above has no upright one.

    Raises:
        ValueError: If it is not 1, 4 (quarter turns) or 8 (these and their mirror images).
    """
    if turns not in (1, 4, 8):
        raise ValueError(f'turns must be 1, 4 (quarter turns) or 8 (also mirrored), got {turns}')
    return turns


def turn(image: Tensor, number: int) -> Tensor:
    """Return an orientation of an image, shape (..., H, W): mirrored from number 4 on, then turned."""
    return torch.rot90(image.flip(-1) if number >= 4 else image, number % 4, (-2, -1))


def turn_back(image: Tensor, number: int) -> Tensor:
    """Undo `turn`."""
    image = torch.rot90(image, -(number % 4), (-2, -1))
    return image.flip(-1) if number >= 4 else image


def average_maps(function: Callable[[Tensor], Tensor], image: Tensor, turns: int = 1) -> Tensor:
    """Average a function's maps over orientations of the images, turned back, shape (B, K, h, w).

    The function maps images, shape (..., H, W), to maps; `turns` is 1, 4 or 8 (ValueError otherwise).
    """
    total = function(image)
    for number in range(1, check_turns(turns)):
        total = total + turn_back(function(turn(image, number)), number)
    return total / turns


def whitening_matrix(covariance: Tensor, power: float, ridge: float = 0.02) -> Tensor:
    """Return a symmetric matrix that evens out the variance of features along their principal axes.

    It weakens what all images share and strengthens what sets them apart.

    Args:
        covariance: Covariance of the features, shape (D, D).
        power: Power of the inverse standard deviation of each axis: 0 leaves the features as they are, 1
            whitens them.
        ridge: Share of the largest standard deviation added to all of them, to keep noise small.

    Returns:
        Matrix to multiply centered features (N, D) by, shape (D, D); it keeps their mean squared length.
        The identity if all features are equal.
    """
    values, vectors = torch.linalg.eigh(covariance.double().cpu())
    deviations = values.clamp(min=0).sqrt()
    if not deviations[-1] > 0:
        return torch.eye(len(covariance)).to(covariance)
    scale = (deviations / deviations[-1] + ridge) ** -power
    scale *= (values.sum() / (values * scale**2).sum()).sqrt()
    return (vectors * scale @ vectors.T).to(covariance)
