"""Groups of bands compute what sustainlab-group/SatMAE computes, from its own checkpoint layout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from explora_geo.checkpoints import load_weights
from explora_geo.checkpoints.convert import convert
from explora_geo.models import GroupChannelTokenizer, TrunkConfig, ViT
from explora_geo.models.position import sincos_1d, sincos_2d
from explora_geo.objectives import MAE

MASKS = pytest.mark.parametrize('mask', ['independent', 'spatial'])


def vit_of(golden: Any, pairing: bool = True, **kwargs: Any) -> ViT:
    """A ViT of the golden configuration, with random weights."""
    config = golden.config
    bands = [f'band {i}' for i in range(config['in_chans'])]
    tokenizer = GroupChannelTokenizer(
        config['embed_dim'],
        config['img_size'],
        config['patch_size'],
        bands,
        channel_groups=[[bands[i] for i in group] for group in config['channel_groups']],
        slot_dim=config['channel_embed'],
        decoder_slot_dim=config.get('decoder_channel_embed'),
        satmae_band_pairing=pairing,
    )
    width, depth, heads = config['embed_dim'], config['depth'], config['num_heads']
    return ViT(tokenizer, width, depth, heads, TrunkConfig(config['mlp_ratio']), **kwargs).eval()


def mae_of(golden: Any, **kwargs: Any) -> MAE:
    config = golden.config
    backbone, parts, layout = convert(golden.state)
    assert layout == 'satmae group-channel'
    vit = vit_of(golden)
    vit.load_state_dict(backbone)
    mae = MAE(vit, config['mask_ratio'], decoder_num_heads=config['decoder_num_heads'], **kwargs)
    report = mae.load_pretrained(parts)
    assert 'anew' not in report and f'width {config["decoder_embed_dim"]}' in report
    return mae.eval()


def by_band(mae: MAE, pred: Tensor) -> Tensor:
    """Predicted patches (B, G, L, ·) as the reference's (B, C, L, P·P), bands group after group."""
    tokenizer = mae.backbone.patch_embed
    parts = [pred[:, i, :, :n] for i, n in enumerate(tokenizer.target_sizes)]
    return torch.cat([p.unflatten(2, (-1, tokenizer.patch_size**2)).transpose(1, 2) for p in parts], dim=1)


@pytest.fixture(scope='module')
def group_golden(golden: Callable[[str], Any]) -> Any:
    return golden('satmae_group_channel')


@MASKS
@torch.no_grad()
def test_mask_and_prediction_are_the_references(group_golden: Any, mask: str) -> None:
    mae = mae_of(group_golden, shared_across_slots=mask == 'spatial')
    # The reference lists predictions group after group, whatever it then pairs them with.
    mae.backbone.patch_embed.satmae_band_pairing = False
    io = group_golden.io
    out = mae.reconstruct(io['images'], io[f'{mask}.noise'])
    assert torch.equal(out.mask, io[f'{mask}.mask'])
    assert_close(by_band(mae, out.pred), io[f'{mask}.pred'], atol=1e-5, rtol=0)


@MASKS
@pytest.mark.parametrize(('norm_pix_loss', 'name'), [(False, 'loss'), (True, 'loss_norm_pix')])
@torch.no_grad()
def test_losses_are_the_references(group_golden: Any, mask: str, norm_pix_loss: bool, name: str) -> None:
    mae = mae_of(group_golden, shared_across_slots=mask == 'spatial', norm_pix_loss=norm_pix_loss)
    images = group_golden.io['images']
    out = mae.reconstruct(images, group_golden.io[f'{mask}.noise'])
    loss = mae.loss(images, out.pred, out.mask)
    assert_close(loss, group_golden.io[f'{mask}.{name}'], rtol=1e-5, atol=0)


@pytest.mark.parametrize('norm_pix_loss', [False, True])
@torch.no_grad()
def test_the_default_pairing_scores_each_prediction_against_the_bands_of_its_own_group(
    group_golden: Any, norm_pix_loss: bool
) -> None:
    mae = mae_of(group_golden, norm_pix_loss=norm_pix_loss)
    mae.backbone.patch_embed.satmae_band_pairing = False
    io, config = group_golden.io, group_golden.config
    images, size = io['images'], config['patch_size']
    patches = images.unfold(2, size, size).unfold(3, size, size).flatten(2, 3).flatten(-2)  # (B,C,L,P·P)
    if norm_pix_loss:
        mean = patches.mean(dim=(1, 3), keepdim=True)
        patches = (patches - mean) / (patches.var(dim=(1, 3), keepdim=True) + 1e-6).sqrt()
    total, start = torch.zeros(()), 0
    for group, removed in zip(config['channel_groups'], io['independent.mask'].unbind(1), strict=True):
        pred = io['independent.pred'][:, start : start + len(group)]
        total += ((pred - patches[:, group]).square().mean(dim=(1, 3)) * removed).sum()
        start += len(group)
    out = mae.reconstruct(images, io['independent.noise'])
    expected = total / io['independent.mask'].sum()
    assert_close(mae.loss(images, out.pred, out.mask), expected, rtol=1e-5, atol=0)
    assert not torch.allclose(expected, io['independent.loss'])


@pytest.mark.parametrize('pooling', ['cls', 'avg'])
@torch.no_grad()
def test_classifiers_give_the_references_features_and_logits(
    golden: Callable[[str], Any], pooling: str
) -> None:
    reference = golden(f'satmae_group_channel_vit_{pooling}')
    assert reference.config['global_pool'] == (pooling == 'avg')
    backbone, parts, layout = convert(reference.state)
    assert layout == 'satmae group-channel'
    vit = vit_of(reference, final_norm=pooling == 'cls')
    vit.load_state_dict(backbone)
    found = vit(reference.io['images'])
    features = found.cls
    if pooling == 'avg':
        mean = found.patches.flatten(1, 2).mean(1)
        width, eps = (mean.shape[-1],), reference.config['norm_eps']
        features = F.layer_norm(mean, width, parts['fc_norm.weight'], parts['fc_norm.bias'], eps)
    assert_close(features, reference.io['features'], atol=1e-5, rtol=0)
    logits = F.linear(features, parts['head.weight'], parts['head.bias'])
    assert_close(logits, reference.io['logits'], atol=1e-5, rtol=0)


def test_the_computed_codes_are_the_references(group_golden: Any) -> None:
    config, state = group_golden.config, group_golden.state
    tokenizer = vit_of(group_golden).patch_embed
    stored = {'atol': 1e-3, 'rtol': 0}  # in half precision
    assert_close(tokenizer.channel_embed, state['channel_embed'], **stored)
    codes = state['decoder_channel_embed'][0]
    expected = sincos_1d(config['decoder_channel_embed'], torch.arange(len(codes)))
    assert_close(codes, expected, **stored)
    found = tokenizer.decoder_slot_codes(config['decoder_embed_dim'], None)[0]
    assert_close(found, codes.roll(1, dims=0), **stored)  # ours lists the class token first
    width = config['embed_dim'] - config['channel_embed']
    assert_close(state['pos_embed'][0, 1:], sincos_2d(width, tokenizer.grid_size), **stored)


def test_the_loader_reads_the_files_as_a_user_would(golden: Callable[[str], Any], tmp_path: Any) -> None:
    for name, norm in (('', True), ('_vit_cls', True), ('_vit_avg', False)):
        reference = golden(f'satmae_group_channel{name}')
        torch.save({'model': reference.state}, tmp_path / 'satmae.pth')
        vit = vit_of(reference, final_norm=norm)
        loaded = load_weights(vit, tmp_path / 'satmae.pth')
        assert 'satmae group-channel layout' in loaded.report and not loaded.anew
        assert torch.equal(vit.state_dict()['norm.bias'], reference.state['norm.bias']) if norm else True
        assert torch.equal(vit.patch_embed.proj[1].weight, reference.state['patch_embed.1.proj.weight'])
    with pytest.raises(ValueError, match='final_norm=False'):
        load_weights(vit_of(reference), tmp_path / 'satmae.pth')


def test_the_loader_says_how_a_satmae_decoder_must_be_gone_on_with(group_golden: Any, tmp_path: Any) -> None:
    torch.save({'model': group_golden.state}, tmp_path / 'satmae.pth')
    reports = [
        load_weights(vit_of(group_golden, pairing), tmp_path / 'satmae.pth').report
        for pairing in (False, True)
    ]
    assert 'set satmae_band_pairing to train it' in reports[0] and 'pairing' not in reports[1]
