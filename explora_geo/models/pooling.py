"""From tokens with a slot axis to what a head reads: the places where slots are reduced."""

from typing import Literal

import torch
from torch import Tensor

from explora_geo.models.vit import Features

Slots = Literal['mean', 'concat']
Tokens = Literal['cls', 'avg', 'cls+avg']


def reduce_slots(patches: Tensor, mode: Slots = 'mean') -> Tensor:
    """Bring the patches of all slots (channel groups, frames) onto one grid.

    Args:
        patches: Patch tokens, shape (B, S, L, D).
        mode: `mean` over slots, or `concat` of their widths, which keeps what each slot says.

    Returns:
        Tokens, shape (B, L, D) or (B, L, S·D).

    Raises:
        ValueError: If the mode is unknown.
    """
    if mode == 'mean':
        return patches.mean(1)
    if mode == 'concat':
        return patches.transpose(1, 2).flatten(2)  # (B,S,L,D) -> (B,L,S·D)
    raise ValueError(f'slots must be mean or concat, got {mode!r}')


def pool(features: list[Features], tokens: Tokens = 'avg', slots: Slots = 'mean') -> Tensor:
    """One vector per image.

    Args:
        features: Features of some blocks, last block last.
        tokens: Class tokens of the blocks, mean patch of the last block, or both.
        slots: How slots are reduced before patches are averaged.

    Returns:
        Vectors, shape (B, F): D for each class token, D or S·D for the mean patch.

    Raises:
        ValueError: If a name is unknown.
    """
    parts = []
    if tokens in ('cls', 'cls+avg'):
        parts += [f.cls for f in features]
    if tokens in ('avg', 'cls+avg'):
        parts.append(reduce_slots(features[-1].patches, slots).mean(1))
    if not parts:
        raise ValueError(f'tokens must be cls, avg or cls+avg, got {tokens!r}')
    return torch.cat(parts, dim=1)
