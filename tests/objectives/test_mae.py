"""Masked autoencoding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, explora, trainable_names
from explora_geo.models import MAEDecoder, ViT, create_vit
from explora_geo.objectives import MAE

Build = Callable[..., ViT]
SMALL: dict[str, Any] = {'decoder_embed_dim': 16, 'decoder_depth': 2, 'decoder_num_heads': 2}


@pytest.mark.parametrize('norm_pix_loss', [False, True])
def test_the_loss_is_the_mean_over_removed_patches_only(
    build_vit: Build, images: Tensor, norm_pix_loss: bool
) -> None:
    mae = MAE(build_vit(), norm_pix_loss=norm_pix_loss, **SMALL)
    mask = torch.zeros(8, 1, 16)
    mask[0, 0, 5] = mask[3, 0, 2] = 1
    pred = torch.randn(8, 1, 16, 192)
    errors = []
    for image, row, column, guess in ((0, 1, 1, pred[0, 0, 5]), (3, 0, 2, pred[3, 0, 2])):
        patch = images[image, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8].flatten()
        if norm_pix_loss:
            patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
        errors.append((guess - patch).square().mean())
    assert_close(mae.loss(images, pred, mask), torch.stack(errors).mean(), rtol=1e-4, atol=0)


def test_the_prediction_depends_on_kept_pixels_only(build_vit: Build, images: Tensor) -> None:
    mae = MAE(build_vit(), **SMALL).eval()
    noise = torch.rand(8, 16)
    out = mae.reconstruct(images, noise)
    removed = mae.backbone.patch_embed.unpatchify(out.mask[..., None].expand(-1, -1, -1, 192), (4, 4))
    again = mae.reconstruct(torch.where(removed.bool(), 7.0, images), noise)
    assert torch.equal(out.pred, again.pred) and torch.equal(out.mask, again.mask)
    assert out.mask.sum() == 8 * 12 and out.latent.shape == (8, 5, 32)


@pytest.mark.parametrize('checkpointing', [False, True])
def test_gradient_checkpointing_recomputes_the_decoder_too(
    build_vit: Build, images: Tensor, checkpointing: bool
) -> None:
    vit = build_vit()
    vit.grad_checkpointing = checkpointing
    mae = MAE(vit, **SMALL)
    mae.load_pretrained(MAE(build_vit(), **SMALL).extra_state())  # which builds another decoder
    calls = []
    for block in mae.decoder.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))
    mae({'image': images}, 0)['loss_mae'].backward()
    assert len(calls) == (4 if checkpointing else 2)


def test_labels_are_never_read(build_vit: Build, images: Tensor) -> None:
    class Strict(dict):
        def __getitem__(self, key: str) -> Any:
            assert key == 'image'
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            assert key == 'timestamps'
            return default

    mae = MAE(build_vit(), **SMALL)
    losses = mae(Strict(image=images, label=torch.full((8,), -1)), 0)
    assert list(losses) == ['loss_mae'] and losses['loss_mae'].ndim == 0


def test_adapted_training_on_real_tiles_lowers_the_loss(build_vit: Build, images: Tensor) -> None:
    mae = MAE(explora(build_vit(), ExPLoRAConfig.parse('[L]-r4')), norm_pix_loss=False, **SMALL)
    optimizer = torch.optim.AdamW([p for p in mae.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for step in range(40):
        loss = mae({'image': images}, step)['loss_mae']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])


def test_a_checkpoints_decoder_of_any_size_is_taken_and_adapted(build_vit: Build) -> None:
    vit = build_vit()
    source = MAEDecoder(vit.patch_embed, 32, embed_dim=24, depth=3, num_heads=2, mlp_ratio=2)
    parts = {f'decoder.{k}': v for k, v in source.state_dict().items()}
    mae = MAE(vit, **SMALL)
    report = mae.load_pretrained(parts)
    assert report == 'decoder of 3 blocks, width 24, loaded and adapted as []-r8'
    loaded = mae.decoder.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in source.state_dict().items())
    names = trainable_names(mae.decoder)
    assert 'mask_token' in names and 'pred.weight' not in names and 'embed.weight' not in names
    assert {n.split('.')[-2] for n in names if 'lora' in n} == {'lora_a', 'lora_b'}


def test_without_a_decoder_a_random_one_trains_in_full(build_vit: Build) -> None:
    mae = MAE(build_vit(), **SMALL)
    assert 'starts random and trains in full' in mae.load_pretrained({})
    of_masks = {'decoder.conv.weight': torch.ones(1), 'decoder.blocks.0.weight': torch.ones(1)}
    assert 'starts random and trains in full' in mae.load_pretrained(of_masks)
    assert len(trainable_names(mae.decoder)) == len(list(mae.decoder.parameters()))


def test_extra_state_is_read_back(build_vit: Build, images: Tensor) -> None:
    vit = build_vit()
    source = MAE(vit, **SMALL).eval()
    target = MAE(vit, **SMALL).eval()
    target.load_pretrained(source.extra_state())
    noise = torch.rand(8, 16)
    assert torch.equal(source.reconstruct(images, noise).pred, target.reconstruct(images, noise).pred)


def test_an_adapted_decoder_is_written_merged(build_vit: Build, images: Tensor) -> None:
    vit = build_vit()
    source = MAE(vit, **SMALL).eval()
    source.load_pretrained(MAE(vit, **SMALL).extra_state())
    with torch.no_grad():
        for name, parameter in source.decoder.named_parameters():
            if 'lora_b' in name:
                parameter.normal_(std=0.1)
    state = source.extra_state()
    assert not any('lora' in name for name in state)
    target = MAE(vit, **SMALL).eval()
    target.load_pretrained(state)
    noise = torch.rand(8, 16)
    found, expected = (m.reconstruct(images, noise).pred for m in (target, source))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_decoder_of_another_backbone_is_refused_in_one_sentence(build_vit: Build) -> None:
    parts = MAE(build_vit(), **SMALL).extra_state()
    with pytest.raises(ValueError, match=r'decoder in the weights does not match: .*embed') as caught:
        MAE(build_vit(width=64), **SMALL).load_pretrained(parts)
    assert '\n' not in str(caught.value)
    parts.pop('decoder.blocks.1.norm2.weight')
    with pytest.raises(ValueError, match='does not match'):
        MAE(build_vit(), **SMALL).load_pretrained(parts)


def test_other_bands_start_the_prediction_anew(build_vit: Build) -> None:
    parts = MAE(build_vit(), **SMALL).extra_state()
    mae = MAE(build_vit(bands='abcd'), **SMALL)
    mae.load_pretrained(parts)
    assert mae.decoder.pred.weight.shape == (4 * 64, 16)
    # A random prediction that stayed frozen could not be learned.
    assert {'pred.weight', 'pred.bias'} <= set(trainable_names(mae.decoder))


@pytest.mark.parametrize('ratio', [0, 1, -0.5, 0.99])
def test_a_ratio_that_leaves_nothing_is_refused(build_vit: Build, ratio: float) -> None:
    with pytest.raises(ValueError, match='mask_ratio must leave patches to keep and to predict'):
        MAE(build_vit(), mask_ratio=ratio, **SMALL)


def test_heads_must_divide_the_decoder_width(build_vit: Build) -> None:
    with pytest.raises(ValueError, match='decoder width, got 3 for width 512'):
        MAE(build_vit(), decoder_num_heads=3)


def test_pictures_show_the_input_where_patches_were_kept(build_vit: Build, images: Tensor) -> None:
    mae = MAE(build_vit(), **SMALL).eval()
    pictures = mae.pictures(images)
    masked, filled = pictures['masked'], pictures['reconstruction']
    assert masked.shape == filled.shape == images.shape
    kept = masked != 0
    assert 0.2 < kept.float().mean() < 0.3
    assert torch.equal(filled[kept], images[kept]) and torch.equal(masked[kept], images[kept])
    assert not torch.equal(filled, images)


def test_features_are_the_mean_patch(build_vit: Build, images: Tensor) -> None:
    features = build_vit()(images)
    assert_close(MAE.pool(features), features.patches[:, 0].mean(1))


@pytest.mark.parametrize('shared', [False, True])
@pytest.mark.parametrize('norm_pix_loss', [False, True])
def test_band_groups_and_frames_are_shown_in_the_units_of_the_input(
    norm_pix_loss: bool, shared: bool
) -> None:
    options = {'norm_pix_loss': norm_pix_loss, 'shared_across_slots': shared, **SMALL}
    groups = create_vit('vit_tiny_patch8_32', tokenizer='group-channel')
    frames = create_vit('vit_tiny_patch8_32', tokenizer='temporal')
    times = torch.randint(0, 12, (2, 3, 3))
    for vit, image, timestamps in (
        (groups, torch.randn(2, 10, 32, 32), None),
        (frames, torch.randn(2, 3, 3, 32, 32), times),
    ):
        shown = MAE(vit, **options).pictures(image, timestamps)
        masked, filled = shown['masked'], shown['reconstruction']
        assert masked.shape == filled.shape == image.shape
        kept = masked != 0
        # The same number of every slot is kept if patches are shared; groups differ in size otherwise.
        assert kept.float().mean().item() == pytest.approx(0.25, abs=0.001 if shared else 0.06)
        assert torch.equal(filled[kept], image[kept]) and not torch.equal(filled, image)


def test_small_groups_count_as_much_as_large_ones() -> None:
    vit = create_vit('vit_tiny_patch8_32', tokenizer='group-channel')
    mae = MAE(vit, norm_pix_loss=False, **SMALL)
    image = torch.randn(1, 10, 32, 32)
    pred = vit.patch_embed.patchify(image)
    pred[:, 2] += 2.0  # the group of two bands; the zeros that fill it up do not count
    mask = torch.zeros(1, 3, 16)
    mask[0, 0, 3] = mask[0, 2, 5] = 1
    assert_close(mae.loss(image, pred, mask), torch.tensor(2.0))
