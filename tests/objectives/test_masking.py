"""Random masks."""

import pytest
import torch

from explora_geo.objectives.masking import random_keep


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
