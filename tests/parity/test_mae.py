"""Our autoencoder computes what facebookresearch/mae computes, from its own checkpoint layout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.testing import assert_close

from explora_geo.checkpoints import load_weights
from explora_geo.checkpoints.convert import convert
from explora_geo.models import PatchTokenizer, TrunkConfig, ViT
from explora_geo.models.position import sincos_2d
from explora_geo.objectives import MAE


def model_of(golden: Any, **kwargs: Any) -> MAE:
    config = golden.config
    backbone, parts, layout = convert(golden.state)
    assert layout == 'mae'
    bands = [f'band {i}' for i in range(config['in_chans'])]
    width = config['embed_dim']
    tokenizer = PatchTokenizer(width, config['img_size'], config['patch_size'], bands)
    vit = ViT(tokenizer, width, config['depth'], config['num_heads'], TrunkConfig(config['mlp_ratio']))
    vit.load_state_dict(backbone)
    mae = MAE(
        vit,
        mask_ratio=config['mask_ratio'],
        decoder_embed_dim=config['decoder_embed_dim'],
        decoder_depth=config['decoder_depth'],
        decoder_num_heads=config['decoder_num_heads'],
        **kwargs,
    )
    mae.load_pretrained(parts)
    return mae.eval()


@pytest.fixture(scope='module')
def mae_golden(golden: Callable[[str], Any]) -> Any:
    return golden('mae')


@torch.no_grad()
def test_mask_latent_and_prediction_are_the_references(mae_golden: Any) -> None:
    mae = model_of(mae_golden)
    io, config = mae_golden.io, mae_golden.config
    out = mae.reconstruct(io['images'], io['noise'])
    assert torch.equal(out.mask[:, 0], io['mask'])
    assert_close(out.latent, io['latent'], atol=1e-5, rtol=0)
    size, bands = config['patch_size'], config['in_chans']
    pred = rearrange(out.pred[:, 0], 'b l (c p q) -> b l (p q c)', c=bands, p=size)
    assert_close(pred, io['pred'], atol=1e-5, rtol=0)


@torch.no_grad()
def test_tokens_of_whole_images_are_the_references(mae_golden: Any) -> None:
    features = model_of(mae_golden).backbone(mae_golden.io['images'])
    tokens = torch.cat([features.cls[:, None], features.patches[:, 0]], dim=1)
    assert_close(tokens, mae_golden.io['tokens_unmasked'], atol=1e-5, rtol=0)


@pytest.mark.parametrize(('norm_pix_loss', 'name'), [(False, 'loss'), (True, 'loss_norm_pix')])
@torch.no_grad()
def test_losses_are_the_references(mae_golden: Any, norm_pix_loss: bool, name: str) -> None:
    mae = model_of(mae_golden, norm_pix_loss=norm_pix_loss)
    images = mae_golden.io['images']
    out = mae.reconstruct(images, mae_golden.io['noise'])
    assert_close(mae.loss(images, out.pred, out.mask), mae_golden.io[name], rtol=1e-5, atol=0)


def test_the_fixed_decoder_positions_are_the_references(mae_golden: Any) -> None:
    stored: Tensor = mae_golden.state['decoder_pos_embed'][0]
    side = mae_golden.config['img_size'] // mae_golden.config['patch_size']
    assert stored[0].abs().max() == 0
    computed = sincos_2d(mae_golden.config['decoder_embed_dim'], (side, side))
    assert_close(computed, stored[1:], atol=1e-3, rtol=0)  # stored in half precision


def test_the_loader_reads_the_file_as_a_user_would(mae_golden: Any, tmp_path: Any) -> None:
    torch.save({'model': mae_golden.state}, tmp_path / 'mae_full.pth')
    reference = model_of(mae_golden).backbone
    vit = model_of(mae_golden).backbone
    torch.nn.init.zeros_(vit.pos_embed)
    loaded = load_weights(vit, tmp_path / 'mae_full.pth')
    assert 'mae layout' in loaded.report
    for name, value in vit.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name]), name
