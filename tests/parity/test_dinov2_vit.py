"""Our ViT computes what facebookresearch/dinov2 computes, mask tokens and small crops included."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.checkpoints.convert import convert
from explora_geo.models import PatchTokenizer, TrunkConfig, ViT


@pytest.fixture(scope='module')
def dinov2(golden: Callable[[str], Any]) -> Any:
    return golden('dinov2_vit')


@pytest.fixture(scope='module')
def vit(dinov2: Any) -> ViT:
    config = dinov2.config
    # What resample_position implements, and what the released models use.
    assert (config['interpolate_offset'], config['interpolate_antialias']) == (0.1, False)
    width = config['embed_dim']
    bands = [f'band {i}' for i in range(dinov2.io['global_crops'].shape[1])]
    tokenizer = PatchTokenizer(width, config['img_size'], config['patch_size'], bands, dynamic_img_size=True)
    model = ViT(
        tokenizer,
        width,
        config['depth'],
        config['num_heads'],
        TrunkConfig(config['mlp_ratio'], init_values=config['init_values']),
        mask_token=True,
    )
    backbone, parts, layout = convert(dinov2.state)
    assert layout == 'dinov2' and not parts
    model.load_state_dict(backbone)
    return model.eval()


def close(actual: Tensor, expected: Tensor) -> None:
    assert_close(actual, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_global_crops_give_the_references_tokens(dinov2: Any, vit: ViT) -> None:
    features = vit(dinov2.io['global_crops'])
    close(features.cls, dinov2.io['global_cls'])
    close(features.patches[:, 0], dinov2.io['global_patch'])


@torch.no_grad()
def test_masked_global_crops_give_the_references_tokens(dinov2: Any, vit: ViT) -> None:
    features = vit(dinov2.io['global_crops'], token_mask=dinov2.io['masks'].bool())
    close(features.cls, dinov2.io['masked_cls'])
    close(features.patches[:, 0], dinov2.io['masked_patch'])
    assert not torch.allclose(features.cls, dinov2.io['global_cls'], atol=1e-3)


@torch.no_grad()
def test_smaller_local_crops_give_the_references_tokens(dinov2: Any, vit: ViT) -> None:
    assert dinov2.io['local_crops'].shape[-1] < dinov2.config['img_size']
    features = vit(dinov2.io['local_crops'])
    close(features.cls, dinov2.io['local_cls'])
    close(features.patches[:, 0], dinov2.io['local_patch'])


@torch.no_grad()
def test_the_last_two_blocks_give_the_references_normed_tokens(dinov2: Any, vit: ViT) -> None:
    found = vit.intermediate(dinov2.io['global_crops'], [-2, -1])
    for i, features in enumerate(found):
        close(features.cls, dinov2.io['blocks_last2_cls'][i])
        close(features.patches[:, 0], dinov2.io['blocks_last2_patch'][i])
