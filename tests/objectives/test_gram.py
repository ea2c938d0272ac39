"""Holding on to the source: what is compared, when, and that it holds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import ViT
from explora_geo.objectives import GramConfig
from explora_geo.objectives.gram import GramLoss
from explora_geo.objectives.schedules import TrainingLength
from explora_geo.objectives.teacher import Teacher

LENGTH = TrainingLength(10, 5)


def moved(build_vit: Callable[..., ViT], config: GramConfig) -> tuple[ViT, GramLoss]:
    """A student whose last block has moved away from the source."""
    vit = explora(build_vit(), ExPLoRAConfig.parse('[L]-r4'))
    loss = GramLoss(Teacher(nn.ModuleDict({'backbone': vit})), config)
    with torch.no_grad():
        vit.blocks[-1].mlp.fc2.weight += 0.5 * torch.randn_like(vit.blocks[-1].mlp.fc2.weight)
    return vit, loss


def test_the_source_costs_what_trains_and_stays_as_it_was(
    build_vit: Callable[..., ViT], images: Tensor
) -> None:
    vit, loss = moved(build_vit, GramConfig())
    source = loss.source.parts['backbone']
    assert source.blocks[0].attn.qkv.weight is vit.blocks[0].attn.qkv.weight
    assert not torch.equal(source(images).cls, vit(images).cls)
    held = sum(v.numel() for v in loss.state_dict().values())
    assert held == sum(p.numel() for p in vit.parameters() if p.requires_grad)


def test_cosines_of_all_pairs_of_patches_are_compared(build_vit: Callable[..., ViT], images: Tensor) -> None:
    vit, loss = moved(build_vit, GramConfig(weight=0.5, start_steps=0, preserve_weight=0.25))
    features, source = vit(images), loss.source.parts['backbone']
    for step, crop in ((0, slice(0, 4)), (2, slice(4, 8))):
        found = loss(images, features, None, step, LENGTH)
        kept = source(images[crop])
        grams = []
        for patches in (features.patches[crop, 0], kept.patches[:, 0]):
            unit = patches / patches.norm(dim=-1, keepdim=True)
            grams.append(torch.einsum('bld,bmd->blm', unit, unit))
        assert_close(found['loss_gram'], (grams[0] - grams[1]).square().mean())  # twice a half
        away = 1 - F.cosine_similarity(features.cls[crop], kept.cls).mean()
        assert_close(found['loss_preserve'], 0.5 * away)


def test_looks_are_rare_and_the_gram_loss_comes_late(build_vit: Callable[..., ViT], images: Tensor) -> None:
    vit, loss = moved(build_vit, GramConfig(preserve_weight=1))
    features = vit(images)
    seen = [sorted(loss(images, features, None, step, LENGTH)) for step in range(8)]
    both, early, none = ['loss_gram', 'loss_preserve'], ['loss_preserve'], []
    assert seen == [early, none, early, none, early, none, both, none]


def test_training_on_it_alone_leads_back(build_vit: Callable[..., ViT], images: Tensor) -> None:
    vit, loss = moved(build_vit, GramConfig(start_steps=0, every=1))
    optimizer = torch.optim.AdamW([p for p in vit.parameters() if p.requires_grad], lr=3e-3)
    sums = []
    for step in range(30):
        value = loss(images, vit(images), None, step, LENGTH)['loss_gram']
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        sums.append(float(value))
    assert sums[-1] < 0.3 * sums[0]


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'weight': 0}, 'weight and preserve_weight must not be negative, and at least one must be positive'),
        ({'every': 0}, 'every must be at least 1'),
        ({'start_steps': 1, 'start_fraction': 0.1}, 'set the same length'),
    ],
)
def test_what_means_nothing_is_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GramConfig(**options)
