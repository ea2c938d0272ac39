"""Backbone and head: every head, any tokenizer, gradients where they belong."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.models import ViT, create_vit
from explora_geo.models.dense import HEADS, DenseHead
from explora_geo.models.predictor import DensePredictor, ImagePredictor

Build = Callable[..., ViT]
GROUPS: dict[str, Any] = {
    'tokenizer': 'group-channel',
    'tokenizer_options': {'channel_groups': [['B02', 'B03', 'B04'], ['B8A']]},
}
FRAMES: dict[str, Any] = {'tokenizer': 'temporal', 'tokenizer_options': {'num_frames': 2}}


def inputs(vit: ViT, size: int = 32) -> tuple[Tensor, Tensor | None]:
    if vit.patch_embed.kind == 'temporal':
        times = torch.tensor([[[12.0, 3, 9], [13, 4, 10]]]).expand(2, -1, -1)
        return torch.randn(2, 2, 3, size, size), times
    return torch.randn(2, len(vit.patch_embed.bands), size, size), None


@pytest.mark.parametrize('head', HEADS)
def test_every_dense_head_scores_each_pixel_and_trains_from_all_its_blocks(
    build_vit: Build, head: str
) -> None:
    size = 128 if head == 'pan' else 64
    model = DensePredictor(build_vit(img_size=size), 3, head, channels=16).train()
    image = torch.randn(2, 3, size, size)
    scores = model(image)
    assert scores.shape == (2, 3, size, size)
    scores.square().mean().backward()
    assert all(p.grad is not None for p in model.head.parameters())
    read = [model.backbone.blocks[i] for i in set(model.blocks)]
    assert all(block.mlp.fc2.weight.grad is not None for block in read)  # type: ignore[union-attr]


@pytest.mark.parametrize('kwargs', [GROUPS, FRAMES], ids=['groups', 'frames'])
@pytest.mark.parametrize('slots', ['mean', 'concat'])
def test_slots_of_any_tokenizer_are_reduced_in_the_head(
    small_names: None, kwargs: dict[str, Any], slots: Any
) -> None:
    vit = create_vit('vit_tiny_patch8_32', **kwargs)
    image, times = inputs(vit)
    assert DensePredictor(vit, 3, 'linear', slots)(image, times).shape == (2, 3, 32, 32)
    assert DensePredictor(vit, 3, 'upernet', slots, channels=8)(image, times).shape == (2, 3, 32, 32)
    assert ImagePredictor(vit, 5, 'cls+avg', slots, last_blocks=2)(image, times).shape == (2, 5)


def test_a_frozen_backbone_stays_in_evaluation_mode_and_keeps_no_graph(build_vit: Build) -> None:
    vit = build_vit(drop_path_rate=0.9)
    model = ImagePredictor(vit.requires_grad_(False), 2).train()
    assert not vit.training and model.norm.training
    image = torch.randn(4, 3, 32, 32)
    features = [model.features(image)[-1].cls for _ in range(2)]
    assert torch.equal(*features) and not features[0].requires_grad
    model(image).sum().backward()
    assert model.head.weight.grad is not None  # type: ignore[union-attr]
    vit.requires_grad_(True)
    assert model.train().backbone.training


def test_the_linear_dense_head_is_one_layer_on_normed_patches(build_vit: Build) -> None:
    vit = build_vit()
    model = DensePredictor(vit, 4, 'linear').eval()
    image = torch.randn(2, 3, 32, 32)
    decoder = model.head.decoder
    with torch.no_grad():
        patches = vit.eval()(image).patches[:, 0] / (1 + 1e-6) ** 0.5  # the running variance is 1
        layer = decoder.linear
        expected = (patches @ layer.weight[:, :, 0, 0].T + layer.bias).mT.unflatten(2, (4, 4))
        found = model.head.decoder(
            [f.patches[:, 0].mT.unflatten(2, (4, 4)) for f in model.features(image)], (32, 32)
        )
        assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_what_does_not_fit_is_refused(build_vit: Build, images: Tensor) -> None:
    for head in ('upernet', 'linear'):
        predictor = DensePredictor(build_vit(depth=4), 3, head, channels=8).train()
        if head == 'upernet':
            with pytest.raises(ValueError, match='training batches of at least two images: raise batch_size'):
                predictor(images[:1])
        else:
            assert predictor(images[:1]).shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match='head must be one of linear, psp, upernet, dpt, fpn, pan'):
        DenseHead('unet', 32, 8, 2)
    with pytest.raises(ValueError, match='last_blocks must be between 1 and 3, got 4'):
        ImagePredictor(build_vit(), 2, last_blocks=4)
    image = torch.randn(1, 3, 48, 48)
    for head, sentence in (('dpt', 'multiples of 32, got 48x48'), ('pan', 'at least 128 pixels, got 48x48')):
        model = DensePredictor(build_vit(img_size=48), 2, head, channels=8).eval()
        with pytest.raises(ValueError, match=sentence):
            model(image)
