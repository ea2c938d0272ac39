"""What is read of a backbone's tokens: slots on one grid, one vector per image, orientations averaged."""

from collections.abc import Callable
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from explora_geo.models.vit import Features

Slots = Literal['mean', 'concat']
Tokens = Literal['cls', 'avg', 'cls+avg']


def reduce_slots(patches: Tensor, mode: Slots = 'mean') -> Tensor:
    """Patches of all slots on one grid, shape (B, S, L, D) -> (B, L, D) or (B, L, S·D).

    `mode` is `mean` over slots, or `concat` of their widths; a ValueError if it is another name.
    """
    if mode not in ('mean', 'concat'):
        raise ValueError(f'slots must be mean or concat, got {mode!r}')
    return patches.mean(1) if mode == 'mean' else patches.transpose(1, 2).flatten(2)


def to_map(features: Features, grid: tuple[int, int], slots: Slots) -> Tensor:
    """Patch tokens as a map, shape (B, D, h, w), with slots reduced."""
    return rearrange(reduce_slots(features.patches, slots), 'b (h w) d -> b d h w', h=grid[0])


def pool(features: list[Features], tokens: Tokens = 'avg', slots: Slots = 'mean') -> Tensor:
    """One vector per image, shape (B, F): D for each class token, D or S·D for the mean patch.

    Args:
        features: Features of some blocks, last block last.
        tokens: Class tokens of the blocks, mean patch of the last block, or both.
        slots: How slots are reduced before patches are averaged.

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
    """Indices of evenly spaced blocks, the last among them: 2, 5, 8, 11 of twelve."""
    return [max(depth * (i + 1) // count - 1, 0) for i in range(count)]


def check_turns(turns: int) -> int:
    """The number of orientations of a tile, which from above has no upright one.

    Raises:
        ValueError: If it is not 1, 4 (quarter turns) or 8 (these and their mirror images).
    """
    if turns not in (1, 4, 8):
        raise ValueError(f'turns must be 1, 4 (quarter turns) or 8 (mirrored, too), got {turns}')
    return turns


def turn(image: Tensor, number: int) -> Tensor:
    """An orientation of an image, shape (..., H, W): mirrored from number 4 on, then quarter turns."""
    return torch.rot90(image.flip(-1) if number >= 4 else image, number % 4, (-2, -1))


def turn_back(image: Tensor, number: int) -> Tensor:
    """Undo `turn`."""
    image = torch.rot90(image, -(number % 4), (-2, -1))
    return image.flip(-1) if number >= 4 else image


def average_maps(function: Callable[[Tensor], Tensor], image: Tensor, turns: int = 1) -> Tensor:
    """Mean over orientations of what a function gives for each place of images, shape (B, K, h, w).

    The function goes from images, shape (..., H, W), to maps; `turns` is 1, 4 or 8, a ValueError otherwise.
    """
    total = function(image)
    for number in range(1, check_turns(turns)):
        total = total + turn_back(function(turn(image, number)), number)
    return total / turns


def whitening_matrix(covariance: Tensor, power: float, ridge: float = 0.02) -> Tensor:
    """A symmetric matrix that evens out the principal directions of features and keeps their axes.

    What all images share counts less then, what tells them apart counts more.

    Args:
        covariance: Covariance of the features, shape (D, D).
        power: Power of the inverse standard deviation of each direction: 0 leaves the features, 1 whitens
            them.
        ridge: Added to the standard deviations, as a share of the largest, so that noise stays small.

    Returns:
        What centered features (N, D) are multiplied with, shape (D, D); it keeps their mean squared length.
        The identity where all features are the same.
    """
    values, vectors = torch.linalg.eigh(covariance.double().cpu())
    deviations = values.clamp(min=0).sqrt()
    if not deviations[-1] > 0:
        return torch.eye(len(covariance)).to(covariance)
    scale = (deviations / deviations[-1] + ridge) ** -power
    scale *= (values.sum() / (values * scale**2).sum()).sqrt()
    return (vectors * scale @ vectors.T).to(covariance)
