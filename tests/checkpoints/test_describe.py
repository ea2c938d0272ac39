"""Weights are described without building a model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from explora_geo.checkpoints.backbone import describe_weights
from explora_geo.models import ViTTiny8_Weights, create_vit
from explora_geo.models.weights import all_weights

State = dict[str, Tensor]


@pytest.fixture
def describe(tmp_path: Path) -> Callable[[Any], dict[str, str]]:
    """Describe a state dict as the file it would be."""

    def call(content: Any) -> dict[str, str]:
        torch.save(content, tmp_path / 'weights.pth')
        return describe_weights(tmp_path / 'weights.pth')

    return call


def test_the_shipped_model_is_described_by_name_and_by_file() -> None:
    rows = describe_weights('ViTTiny8_Weights.TINY_IMAGENET_MAE')
    assert rows['backbone'] == 'vit_tiny_patch8_64' and rows['bands'] == 'red, green, blue'
    assert rows['image size'] == '64 px, 8x8 patches' and rows['patch'] == '8 px'
    assert rows['decoder'] == 'width 128, 2 blocks' and rows['license'] == 'MIT'
    assert describe_weights(ViTTiny8_Weights.TINY_IMAGENET_MAE) == rows


def test_the_backbones_name_is_told_from_the_tensors(describe: Any, small_names: None) -> None:
    for name in ('vit_tiny_patch8_32', 'vit_small_patch14_dinov2'):
        vit = create_vit(name, bands='abcde')
        rows = describe(vit.state_dict())
        assert rows['backbone'] == name
        assert rows['bands'] == '5, names not stated' and rows['tokenizer'] == 'patch'
        assert rows['parameters'].startswith(f'{sum(p.numel() for p in vit.parameters()):,} ')


def test_layout_tokenizer_decoder_and_what_stands_beside_are_named(
    describe: Any, mae_state: State, group_state: State
) -> None:
    rows = describe({'model': {**mae_state, 'head.weight': torch.ones(2, 32), 'head.bias': torch.ones(2)}})
    assert rows['layout'] == 'mae' and rows['decoder'] == 'width 16, 1 blocks'
    assert rows['backbone'] == 'unnamed size' and rows['beside'] == 'head (2)'
    rows = describe({'model': group_state})
    assert rows['layout'] == 'satmae group-channel'
    assert rows['tokenizer'] == 'group-channel, groups of 2, 1 bands' and rows['bands'].startswith('3,')
    temporal = {**mae_state, 'pos_embed': torch.randn(1, 17, 20)}
    assert describe(temporal)['tokenizer'] == 'temporal'


def test_what_is_no_vit_is_refused_by_name(describe: Any, encoder_state: State, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'weights\.pth: the file has no class token'):
        describe({'conv1.weight': torch.ones(3, 3)})
    with pytest.raises(
        ValueError, match=r'weights\.pth is not a complete ViT: it has no patch embedding or no positions'
    ):
        describe({k: v for k, v in encoder_state.items() if k != 'pos_embed'})
    with pytest.raises(FileNotFoundError):
        describe_weights(tmp_path / 'missing.pth')


@pytest.mark.parametrize('name', all_weights())
def test_every_entry_says_what_a_user_must_know(name: str) -> None:
    entry = all_weights()[name]
    meta = entry.meta
    assert entry.url.startswith(('https://', 'file://', 'hf:')) and meta['license'] and meta['dataset']
    with torch.device('meta'):
        options = {k: meta[k] for k in ('tokenizer', 'tokenizer_options') if k in meta}
        vit = create_vit(meta['model'], bands=meta['bands'], **options)
    assert vit.patch_embed.bands == meta['bands']
    assert meta['decoder'] in (True, False)
