"""Attention of the class token, against timm's own computation."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.evaluation import class_attention
from explora_geo.models import create_vit


@pytest.mark.parametrize('block', [0, -1])
def test_attention_is_what_timms_block_computes(small_names: None, images: Tensor, block: int) -> None:
    vit = create_vit('vit_tiny_patch8_32').eval()
    found: list[Tensor] = []
    attention = vit.blocks[block].attn
    attention.fused_attn = False  # type: ignore[union-attr]
    attention.attn_drop.register_forward_hook(lambda layer, x, y: found.append(y))  # type: ignore[union-attr, operator]
    with torch.no_grad():
        vit(images)
    weights = class_attention(vit, images, block)
    assert weights.shape == (8, 2, 1, 16)
    assert_close(weights[:, :, 0], found[0][:, :, 0, 1:])


def test_attention_keeps_slots_apart(small_names: None) -> None:
    vit = create_vit('vit_tiny_patch8_32', tokenizer='group-channel')
    weights = class_attention(vit, torch.randn(2, 10, 32, 32))
    assert weights.shape == (2, 2, 3, 16) and (weights.sum((2, 3)) < 1).all()


def test_a_block_that_is_not_there_is_refused(small_names: None, images: Tensor) -> None:
    with pytest.raises(IndexError):
        class_attention(create_vit('vit_tiny_patch8_32'), images, 3)
