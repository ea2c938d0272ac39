"""Every objective works with every tokenizer, from adaptation to two optimiser steps."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import ViT, create_vit
from explora_geo.objectives import MAE, Objective

TOKENIZERS: dict[str, dict[str, Any]] = {
    'patch': {},
    'group-channel': {},
    'temporal': {'tokenizer_options': {'num_frames': 2}},
}


def mae(vit: ViT) -> MAE:
    return MAE(vit, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)


OBJECTIVES: dict[str, Callable[[ViT], Objective]] = {'mae': mae}


def batch_of(vit: ViT) -> dict[str, Tensor]:
    """Four random images as the tokenizer reads them."""
    bands = len(vit.patch_embed.bands)
    if vit.patch_embed.kind == 'temporal':
        return {'image': torch.randn(4, 2, bands, 32, 32), 'timestamps': torch.randint(0, 12, (4, 2, 3))}
    return {'image': torch.randn(4, bands, 32, 32)}


@pytest.mark.parametrize('objective', OBJECTIVES)
@pytest.mark.parametrize('tokenizer', TOKENIZERS)
def test_two_steps_move_what_trains_and_nothing_else(
    objective: str, tokenizer: str, small_names: None
) -> None:
    vit = create_vit('vit_tiny_patch8_32', tokenizer=tokenizer, **TOKENIZERS[tokenizer])
    explora(vit, ExPLoRAConfig.parse('[L]-r4').with_extra(vit.patch_embed.fresh))
    model = OBJECTIVES[objective](vit)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        losses = model(batch_of(vit), step)
        loss = torch.stack(list(losses.values())).sum()
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(step + 1)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert moved <= trained
    assert {k for k in trained if 'lora_a' in k or k.startswith('backbone.patch_embed')} <= moved
