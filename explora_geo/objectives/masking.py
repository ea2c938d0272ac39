"""Random masks over tokens."""

import torch
from torch import Tensor


def random_keep(
    noise: Tensor, mask_ratio: float, slots: int = 1, shared_across_slots: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose the tokens that MAE keeps: those with the smallest noise.

    Args:
        noise: Noise per token, shape (B, S·L), or per patch if shared across slots, shape (B, L).
        mask_ratio: Share of tokens that are removed.
        slots: Slots S.
        shared_across_slots: Remove the same patches in every slot.

    Returns:
        Indices of the kept tokens in ascending order of noise (slot after slot if shared), shape
        (B, K), and the mask, 1 where a token is removed, shape (B, S·L).
    """
    length = noise.shape[1]
    kept = int(length * (1 - mask_ratio))
    keep = torch.argsort(noise, dim=1)[:, :kept]
    if shared_across_slots:
        offsets = torch.arange(slots, device=noise.device) * length
        keep = (keep[:, None] + offsets[None, :, None]).flatten(1)  # (B,K) -> (B,S·K)
        length *= slots
    mask = torch.ones(len(noise), length, device=noise.device)
    return keep, mask.scatter(1, keep, 0.0)
