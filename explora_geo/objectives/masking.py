"""Random token masks."""

import random
from dataclasses import dataclass

import torch
from lightly.models.utils import random_block_mask_image
from torch import Tensor


@dataclass(frozen=True)
class MaskConfig:
    """Masking of global crops for the student (iBOT).

    Attributes:
        ratio: Smallest and largest masked share of a masked crop.
        probability: Share of global crops that are masked.
        shared_across_slots: Mask the same patches in every slot.
    """

    ratio: tuple[float, float] = (0.1, 0.5)
    probability: float = 0.5
    shared_across_slots: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= self.ratio[0] <= self.ratio[1] < 1 or not 0 <= self.probability <= 1:
            raise ValueError(
                'mask ratio must be (low, high) with 0 <= low <= high < 1 and mask probability in [0, 1], '
                f'got {self.ratio} and {self.probability}'
            )


def random_keep(
    noise: Tensor, mask_ratio: float, slots: int = 1, shared_across_slots: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose the tokens with the smallest noise, which MAE keeps.

    Args:
        noise: Noise per token, shape (B, S·L), or per patch if shared across slots, shape (B, L).
        mask_ratio: Share of tokens to remove.
        slots: Slots S.
        shared_across_slots: Remove the same patches in every slot.

    Returns:
        Indices of the kept tokens in ascending order of noise (slot by slot if shared), shape (B, K),
        and the mask, 1 where a token is removed, shape (B, S·L).
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


def block_masks(
    images: int,
    grid: tuple[int, int],
    slots: int = 1,
    ratio: tuple[float, float] = (0.1, 0.5),
    probability: float = 0.5,
    shared_across_slots: bool = False,
) -> Tensor:
    """Draw DINOv2's block-wise masks for a share of the images.

    The masked shares of the chosen images are spread evenly over `ratio`, as in DINOv2's collation, and
    filled by rectangles. Unlike lightly's `random_block_mask`, this supports grids so small that four
    patches, DINOv2's smallest block, would exceed the share.

    Args:
        images: Number of images B.
        grid: Patches along height and width.
        slots: Slots S.
        ratio: Smallest and largest share of an image's patches to mask.
        probability: Share of images that are masked.
        shared_across_slots: Mask the same patches in every slot.

    Returns:
        True where a token is masked, shape (B, S, L).
    """
    masked = int(images * probability)
    low, high = ratio
    drawn = 1 if shared_across_slots else slots
    masks = torch.zeros(images, drawn, *grid, dtype=torch.bool)
    for i, image in enumerate(torch.randperm(images)[:masked].tolist()):
        share = low + (high - low) * (i + random.random()) / masked
        count = int(grid[0] * grid[1] * share)
        for slot in range(drawn):
            masks[image, slot] = random_block_mask_image(grid, count, min_num_masks_per_block=min(4, count))
    return masks.flatten(2).expand(images, slots, -1)
