"""Series of frames compute what sustainlab-group/SatMAE computes, from its own checkpoint layout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from einops import rearrange
from torch.nn import functional as F
from torch.testing import assert_close

from explora_geo.checkpoints import load_weights
from explora_geo.checkpoints.convert import convert
from explora_geo.models import TemporalTokenizer, TrunkConfig, ViT
from explora_geo.objectives import MAE

MASKS = pytest.mark.parametrize('mask', ['independent', 'consistent'])


def vit_of(golden: Any, **kwargs: Any) -> ViT:
    config, (frames, channels) = golden.config, golden.io['images'].shape[1:3]
    width = config['embed_dim']
    tokenizer = TemporalTokenizer(
        width,
        config['img_size'],
        config['patch_size'],
        [f'band {i}' for i in range(channels)],
        num_frames=frames,
        slot_dim=width - golden.state['pos_embed'].shape[-1],
        decoder_slot_dim=config.get('decoder_time_embed_dim'),
    )
    assert tokenizer.slot_dim == config.get('time_embed_dim', 384)
    trunk = TrunkConfig(config['mlp_ratio'])
    return ViT(tokenizer, width, config['depth'], config['num_heads'], trunk, **kwargs).eval()


def mae_of(golden: Any, **kwargs: Any) -> MAE:
    config = golden.config
    backbone, parts, layout = convert(golden.state)
    assert layout == 'satmae temporal'
    vit = vit_of(golden)
    vit.load_state_dict(backbone)
    mae = MAE(vit, config['mask_ratio'], decoder_num_heads=config['decoder_num_heads'], **kwargs)
    assert 'anew' not in mae.load_pretrained(parts)
    return mae.eval()


@pytest.fixture(scope='module')
def temporal_golden(golden: Callable[[str], Any]) -> Any:
    return golden('satmae_temporal')


@MASKS
@torch.no_grad()
def test_mask_and_prediction_are_the_references(temporal_golden: Any, mask: str) -> None:
    mae = mae_of(temporal_golden, shared_across_slots=mask == 'consistent')
    io = temporal_golden.io
    out = mae.reconstruct(io['images'], io[f'{mask}.noise'], io['timestamps'])
    assert torch.equal(out.mask.flatten(1), io[f'{mask}.mask'])
    channels, size = io['images'].shape[2], temporal_golden.config['patch_size']
    pred = rearrange(out.pred, 'b t l (c p q) -> b (t l) (p q c)', c=channels, p=size)
    assert_close(pred, io[f'{mask}.pred'], atol=1e-5, rtol=0)


@MASKS
@pytest.mark.parametrize(('norm_pix_loss', 'name'), [(False, 'loss'), (True, 'loss_norm_pix')])
@torch.no_grad()
def test_losses_are_the_references(temporal_golden: Any, mask: str, norm_pix_loss: bool, name: str) -> None:
    mae = mae_of(temporal_golden, shared_across_slots=mask == 'consistent', norm_pix_loss=norm_pix_loss)
    io = temporal_golden.io
    out = mae.reconstruct(io['images'], io[f'{mask}.noise'], io['timestamps'])
    assert_close(mae.loss(io['images'], out.pred, out.mask), io[f'{mask}.{name}'], rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_classifier_gives_the_references_features_and_logits(golden: Callable[[str], Any]) -> None:
    reference = golden('satmae_temporal_vit')
    backbone, parts, _ = convert(reference.state)
    pooled = reference.config['global_pool']
    vit = vit_of(reference, final_norm=not pooled)
    vit.load_state_dict(backbone)
    features, patches, _ = vit(reference.io['images'], timestamps=reference.io['timestamps'])
    if pooled:
        mean, eps = patches.flatten(1, 2).mean(1), reference.config['norm_eps']
        norm = parts['fc_norm.weight'], parts['fc_norm.bias']
        features = F.layer_norm(mean, mean.shape[1:], *norm, eps)
    assert_close(features, reference.io['features'], atol=1e-5, rtol=0)
    logits = F.linear(features, parts['head.weight'], parts['head.bias'])
    assert_close(logits, reference.io['logits'], atol=1e-5, rtol=0)


def test_the_loader_reads_the_files_as_a_user_would(golden: Callable[[str], Any], tmp_path: Any) -> None:
    for name in ('satmae_temporal', 'satmae_temporal_vit'):
        reference = golden(name)
        torch.save({'model': reference.state}, tmp_path / 'satmae.pth')
        vit = vit_of(reference)
        assert 'satmae temporal layout' in load_weights(vit, tmp_path / 'satmae.pth').report
        assert torch.equal(vit.pos_embed, reference.state['pos_embed'])
