"""The trunk: keys, masking, checkpointing, attention."""

from collections.abc import Callable

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.testing import assert_close

from explora_geo.models import RotaryConfig, ViT
from explora_geo.models.blocks import _add_for_some

Build = Callable[..., ViT]


def reference(vit: ViT) -> VisionTransformer:
    """Timm's own model of the same size and weights."""
    tokenizer = vit.patch_embed
    model = VisionTransformer(
        img_size=tokenizer.img_size,
        patch_size=tokenizer.patch_size,
        in_chans=len(tokenizer.bands),
        num_classes=0,
        embed_dim=vit.embed_dim,
        depth=vit.depth,
        num_heads=vit.blocks[0].attn.num_heads,
        init_values=1.0 if hasattr(vit.blocks[0].ls1, 'gamma') else None,
    )
    model.load_state_dict(vit.state_dict())
    return model.eval()


@pytest.mark.parametrize('init_values', [None, 0.1])
@torch.no_grad()
def test_features_are_timms(build_vit: Build, images: Tensor, init_values: float | None) -> None:
    vit = build_vit(init_values=init_values).eval()
    features = vit(images)
    tokens = torch.cat([features.cls[:, None], features.patches[:, 0]], dim=1)
    assert_close(tokens, reference(vit).forward_features(images), atol=1e-5, rtol=0)


def test_every_norm_has_the_eps_of_the_published_models(build_vit: Build) -> None:
    assert {m.eps for m in build_vit().modules() if isinstance(m, nn.LayerNorm)} == {1e-6}


@torch.no_grad()
def test_intermediate_features_are_timms(build_vit: Build, images: Tensor) -> None:
    vit = build_vit().eval()
    found = vit.intermediate(images, [-1, 0])
    expected = reference(vit).get_intermediate_layers(images, n=[0, 2], return_prefix_tokens=True, norm=True)
    for features, (patches, cls) in zip(found, expected[::-1], strict=True):
        assert_close(features.cls, cls[:, 0], atol=1e-5, rtol=0)
        assert_close(features.patches[:, 0], patches, atol=1e-5, rtol=0)
    with pytest.raises(IndexError):
        vit.intermediate(images, [3])


@torch.no_grad()
def test_keeping_all_tokens_in_another_order_permutes_the_patches(build_vit: Build, images: Tensor) -> None:
    vit = build_vit().eval()
    order = torch.stack([torch.randperm(16) for _ in images])
    whole, kept = vit(images), vit(images, keep=order)
    assert_close(kept.cls, whole.cls, atol=1e-5, rtol=0)
    expected = whole.patches[:, 0].gather(1, order[..., None].expand(-1, -1, vit.embed_dim))
    assert_close(kept.patches, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_dropped_patches_do_not_influence_the_kept_ones(build_vit: Build, images: Tensor) -> None:
    vit = build_vit().eval()
    keep = torch.tensor([[0, 1, 4]]).expand(len(images), -1)
    changed = images.clone()
    changed[:, :, 16:] = 99.0  # rows 2 and 3 of the patch grid
    assert torch.equal(vit(images, keep=keep).cls, vit(changed, keep=keep).cls)


@torch.no_grad()
def test_masked_patches_do_not_influence_the_output(build_vit: Build, images: Tensor) -> None:
    vit = build_vit(mask_token=True).eval()
    mask = torch.zeros(len(images), 16, dtype=torch.bool)
    mask[:, 8:] = True
    changed = images.clone()
    changed[:, :, 16:] = 99.0
    assert torch.equal(vit(images, token_mask=mask).patches, vit(changed, token_mask=mask).patches)
    assert not torch.equal(vit(images).cls, vit(images, token_mask=mask).cls)


def test_a_mask_without_a_mask_token_is_refused(build_vit: Build, images: Tensor) -> None:
    with pytest.raises(ValueError, match='mask_token=True'):
        build_vit()(images, token_mask=torch.ones(8, 16, dtype=torch.bool))


@torch.no_grad()
def test_other_image_sizes_run_when_the_size_is_dynamic(build_vit: Build) -> None:
    vit = build_vit(dynamic_img_size=True).eval()
    for height, width in [(32, 32), (16, 16), (40, 64)]:
        features = vit(torch.randn(2, 3, height, width))
        assert features.patches.shape == (2, 1, height * width // 64, 32)
        assert torch.isfinite(features.cls).all()


def test_gradient_checkpointing_gives_equal_gradients(build_vit: Build, images: Tensor) -> None:
    vit = build_vit()
    gradients = []
    for checkpointing in (False, True):
        vit.grad_checkpointing = checkpointing
        vit.zero_grad()
        vit(images).cls.square().sum().backward()
        gradients.append([p.grad.clone() for p in vit.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert_close(recomputed, plain, atol=1e-6, rtol=1e-5)


def test_gradient_checkpointing_recomputes_each_block_once(build_vit: Build, images: Tensor) -> None:
    vit = build_vit()
    calls = []
    vit.blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    vit.grad_checkpointing = True
    vit(images).cls.sum().backward()
    assert len(calls) == 2


def test_attention_is_torchs_fused_kernel(
    build_vit: Build, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = build_vit()
    assert all(block.attn.fused_attn is None for block in vit.blocks)  # it chooses itself
    calls = []
    real = nn.functional.scaled_dot_product_attention

    def spy(*args: object, **kwargs: object) -> Tensor:
        calls.append(1)
        return real(*args, **kwargs)

    monkeypatch.setattr(nn.functional, 'scaled_dot_product_attention', spy)
    vit(images)
    assert len(calls) == vit.depth


@pytest.mark.parametrize(('uniform', 'rates'), [(False, [0, 0.1, 0.2]), (True, [0.2] * 3)])
def test_drop_path_rises_as_in_timm_or_is_uniform_as_in_dinov2(
    build_vit: Build, images: Tensor, uniform: bool, rates: list[float]
) -> None:
    vit = build_vit(drop_path_rate=0.2, uniform_drop_path=uniform)
    found = [getattr(block.drop_path1, 'drop_prob', 0) for block in vit.blocks]
    assert found == pytest.approx(rates)
    assert not torch.equal(vit(images).cls, vit(images).cls)
    vit.eval()
    assert torch.equal(vit(images).cls, vit(images).cls)


def test_fixed_positions_do_not_train_and_leave_the_class_token_alone() -> None:
    from explora_geo.models import create_vit

    vit = create_vit('vit_tiny_patch16_32', learned_position=False)
    assert not vit.pos_embed.requires_grad
    assert vit.pos_embed[:, 0].abs().max() == 0 and vit.pos_embed[:, 1:].abs().max() > 0.9


def test_the_mask_token_is_the_only_key_that_it_adds(build_vit: Build) -> None:
    plain, masked = build_vit().state_dict(), build_vit(mask_token=True).state_dict()
    assert set(masked) - set(plain) == {'mask_token'}
    assert masked['mask_token'].shape == (1, 32)  # DINOv2's shape


def test_tokens_embedded_before_give_the_same_features(build_vit: Build, images: Tensor) -> None:
    vit = build_vit(mask_token=True)
    mask = torch.rand(len(images), 1, 16) < 0.5
    for options in ({}, {'token_mask': mask}, {'keep': torch.arange(4).expand(len(images), 4)}):
        expected = vit(images, **options)
        found = vit(images, embedded=vit.patch_embed(images), **options)
        assert torch.equal(found.cls, expected.cls) and torch.equal(found.patches, expected.patches)


@pytest.mark.parametrize('rotary', [None, RotaryConfig()])
def test_with_much_stochastic_depth_dropped_images_are_not_computed(
    build_vit: Callable[..., ViT], images: Tensor, rotary: RotaryConfig | None
) -> None:
    options = {'rotary': rotary, 'init_values': 0.5, 'drop_path_rate': 0.3, 'uniform_drop_path': True}
    vit, seen = build_vit(**options).train(), []
    for block in vit.blocks:
        for part in (block.attn, block.mlp):
            part.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    found = vit(images).cls
    assert seen == 6 * [5]  # of 8
    assert not torch.equal(found, vit(images).cls) and torch.isfinite(found).all()
    seen.clear()
    with torch.no_grad():
        vit.eval()(images)
    assert seen == 6 * [8]


def test_dropping_a_part_of_the_batch_keeps_the_expectation(images: Tensor) -> None:
    x = images.flatten(1)[:, :64]
    mean = torch.stack([_add_for_some(x, 0.3, lambda y, rows: y.square()) for _ in range(3000)]).mean(0)
    assert (mean - (x + x.square())).abs().max() < 0.1 * x.square().max()
    assert ((mean - x) / x.square()).mean() == pytest.approx(1, abs=0.02)
