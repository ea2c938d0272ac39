"""Random masks."""

import random

import pytest
import torch
from lightly.models.utils import random_block_mask

from explora_geo.objectives.masking import block_masks, random_keep


@pytest.mark.parametrize('ratio', [0.25, 0.5, 0.75, 0.9])
def test_the_tokens_with_the_smallest_noise_are_kept_in_its_order(ratio: float) -> None:
    noise = torch.rand(5, 64)
    keep, mask = random_keep(noise, ratio)
    kept = int(64 * (1 - ratio))
    assert keep.shape == (5, kept) and mask.shape == (5, 64)
    chosen = noise.gather(1, keep)
    assert torch.equal(chosen, noise.sort(dim=1).values[:, :kept])
    assert torch.equal(mask.sum(1), torch.full((5,), 64.0 - kept))
    assert mask.gather(1, keep).abs().max() == 0


def test_shared_masks_are_the_same_in_every_slot() -> None:
    noise = torch.rand(4, 16)
    keep, mask = random_keep(noise, 0.75, slots=3, shared_across_slots=True)
    assert keep.shape == (4, 12) and mask.shape == (4, 48)
    first, second, third = mask.chunk(3, dim=1)
    assert torch.equal(first, second) and torch.equal(first, third)
    assert torch.equal(first, random_keep(noise, 0.75)[1])
    assert torch.equal(keep[:, 4:8], keep[:, :4] + 16)


def test_every_token_is_removed_equally_often() -> None:
    _, mask = random_keep(torch.rand(4000, 16), 0.75)
    assert (mask.mean(0) - 0.75).abs().max() < 0.05


def test_half_of_the_images_are_masked_by_shares_spread_over_the_ratio() -> None:
    shares = torch.stack([block_masks(20, (16, 16)).float().mean((1, 2)) for _ in range(20)])
    assert ((shares > 0).sum(1) == 10).all()
    assert shares.max() <= 0.5
    ranked = shares.sort(dim=1).values[:, 10:].mean(0)
    # One share from every tenth of the range; blocks may fall a little short of it.
    centres = torch.linspace(0.12, 0.48, 10)
    assert (ranked <= centres + 0.02).all() and (ranked >= centres - 0.06).all()


def test_masks_are_spread_as_lightlys() -> None:
    random.seed(0)
    ours = torch.cat([block_masks(40, (16, 16))[:, 0] for _ in range(15)]).view(-1, 16, 16).float()
    theirs = torch.cat([random_block_mask((40, 16, 16)) for _ in range(15)]).float()
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 0.1
    # Blocks, not specks: the neighbor of a masked patch is mostly masked.
    for masks in (ours, theirs):
        assert (masks[:, 1:] * masks[:, :-1]).sum() / masks[:, 1:].sum() > 0.7


def test_slots_are_masked_alone_or_together() -> None:
    alone = block_masks(8, (8, 8), slots=3, ratio=(0.4, 0.5))
    together = block_masks(8, (8, 8), slots=3, ratio=(0.4, 0.5), shared_across_slots=True)
    assert alone.shape == together.shape == (8, 3, 64) and alone.dtype == torch.bool
    first, second, third = together.unbind(1)
    assert torch.equal(first, second) and torch.equal(first, third) and first.any()
    chosen = alone[alone.any(2).any(1)]
    assert len(chosen) == 4 and not torch.equal(chosen[:, 0], chosen[:, 1])


@pytest.mark.parametrize('grid', [(1, 1), (2, 2), (2, 8), (4, 4)])
def test_small_grids_are_never_masked_beyond_the_ratio(grid: tuple[int, int]) -> None:
    for _ in range(20):
        masks = block_masks(6, grid)
        assert masks.shape == (6, 1, grid[0] * grid[1]) and masks.float().mean(2).max() <= 0.5


def test_no_image_is_masked_with_probability_zero() -> None:
    assert not block_masks(6, (8, 8), probability=0).any()
