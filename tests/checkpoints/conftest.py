"""State dicts with the key names of published files."""

import pytest
import torch
from torch import Tensor

PATCH, WIDTH, DECODER = 8, 32, 16


def block(width: int) -> dict[str, tuple[int, ...]]:
    return {
        'norm1.weight': (width,),
        'norm1.bias': (width,),
        'attn.qkv.weight': (3 * width, width),
        'attn.qkv.bias': (3 * width,),
        'attn.proj.weight': (width, width),
        'attn.proj.bias': (width,),
        'norm2.weight': (width,),
        'norm2.bias': (width,),
        'mlp.fc1.weight': (4 * width, width),
        'mlp.fc1.bias': (4 * width,),
        'mlp.fc2.weight': (width, 4 * width),
        'mlp.fc2.bias': (width,),
    }


def shapes(depth: int) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {
        'cls_token': (1, 1, WIDTH),
        'pos_embed': (1, 17, WIDTH),
        'patch_embed.proj.weight': (WIDTH, 3, PATCH, PATCH),
        'patch_embed.proj.bias': (WIDTH,),
    }
    for i in range(depth):
        found |= {f'blocks.{i}.{k}': v for k, v in block(WIDTH).items()}
    return found | {'norm.weight': (WIDTH,), 'norm.bias': (WIDTH,)}


@pytest.fixture
def encoder_state() -> dict[str, Tensor]:
    """MAE's encoder-only file of 3 blocks, as `mae_pretrain_vit_*.pth`."""
    return {k: torch.randn(v) for k, v in shapes(3).items()}


@pytest.fixture
def mae_state() -> dict[str, Tensor]:
    """MAE's full file of 3 + 1 blocks, as `mae_visualize_vit_*.pth`."""
    decoder = {
        'mask_token': (1, 1, DECODER),
        'decoder_pos_embed': (1, 17, DECODER),
        'decoder_embed.weight': (DECODER, WIDTH),
        'decoder_embed.bias': (DECODER,),
        **{f'decoder_blocks.0.{k}': v for k, v in block(DECODER).items()},
        'decoder_norm.weight': (DECODER,),
        'decoder_norm.bias': (DECODER,),
        'decoder_pred.weight': (PATCH * PATCH * 3, DECODER),
        'decoder_pred.bias': (PATCH * PATCH * 3,),
    }
    return {k: torch.randn(v) for k, v in (shapes(3) | decoder).items()}


@pytest.fixture
def group_state(mae_state: dict[str, Tensor]) -> dict[str, Tensor]:
    """SatMAE's file of two groups of bands, as `pretrain-vit-*-e199.pth`."""
    single = ('patch_embed.', 'decoder_pred.', 'pos_embed', 'decoder_pos_embed')
    state = {k: v for k, v in mae_state.items() if not k.startswith(single)}
    for i, bands in enumerate((2, 1)):
        state[f'patch_embed.{i}.proj.weight'] = torch.randn(WIDTH, bands, PATCH, PATCH)
        state[f'patch_embed.{i}.proj.bias'] = torch.randn(WIDTH)
        state[f'decoder_pred.{i}.weight'] = torch.randn(PATCH * PATCH * bands, DECODER)
        state[f'decoder_pred.{i}.bias'] = torch.randn(PATCH * PATCH * bands)
    return state | {
        'pos_embed': torch.randn(1, 17, WIDTH - 8),
        'channel_embed': torch.randn(1, 2, 8),
        'decoder_pos_embed': torch.randn(1, 17, DECODER - 4),
        'decoder_channel_embed': torch.randn(1, 3, 4),
    }
