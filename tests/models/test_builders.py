"""Named backbones are timm's, key by key and number by number."""

from itertools import product

import pytest
import timm
import torch
from torch.testing import assert_close

from explora_geo.models import create_vit
from explora_geo.models.builders import task_size

NAMES = [
    *(f'vit_{size}_patch16_224' for size in ('tiny', 'small', 'base', 'large')),
    'vit_huge_patch14_224',
    *(f'vit_{size}_patch14_dinov2' for size in ('small', 'base', 'large', 'giant')),
]


@pytest.mark.parametrize('name', NAMES)
def test_keys_and_shapes_are_timms(name: str) -> None:
    with torch.device('meta'):
        ours = create_vit(name)
        timms = timm.create_model(name, num_classes=0)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in timms.state_dict().items()
    }
    assert all(p.is_meta for p in ours.parameters())


@pytest.mark.parametrize(('name', 'size'), [('vit_tiny_patch16_224', 224), ('vit_small_patch14_dinov2', 28)])
@torch.no_grad()
def test_timm_loads_our_weights_and_gives_our_features(name: str, size: int) -> None:
    ours = create_vit(name, img_size=size).eval()
    for parameter in ours.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    timms = timm.create_model(name, num_classes=0, img_size=size).eval()
    timms.load_state_dict(ours.state_dict())
    image = torch.randn(1, 3, size, size)
    features = ours(image)
    tokens = torch.cat([features.cls[:, None], features.patches[:, 0]], dim=1)
    assert_close(tokens, timms.forward_features(image), atol=1e-5, rtol=0)


@pytest.mark.parametrize(('size', 'patch'), list(product([64, 128], [8, 16])))
def test_arguments_override_the_name(size: int, patch: int) -> None:
    with torch.device('meta'):
        vit = create_vit('vit_base_patch16_224', img_size=size, patch_size=patch, bands='abcde')
        timms = timm.create_model(
            'vit_base_patch16_224', num_classes=0, img_size=size, patch_size=patch, in_chans=5
        )
    assert {k: v.shape for k, v in vit.state_dict().items()} == {
        k: v.shape for k, v in timms.state_dict().items()
    }


def test_a_depth_at_the_end_of_a_name_keeps_the_first_blocks() -> None:
    with torch.device('meta'):
        whole, part = create_vit('vit_small_patch14_dinov2'), create_vit('vit_small_patch14_dinov2_depth6')
        with pytest.raises(ValueError, match='asks for 13 blocks: vit_small has 12'):
            create_vit('vit_small_patch14_dinov2_depth13')
    kept = {
        k: v.shape for k, v in whole.state_dict().items() if 'blocks.' not in k or int(k.split('.')[1]) < 6
    }
    assert {k: v.shape for k, v in part.state_dict().items()} == kept


def test_names_that_timm_lacks_say_patch_and_size() -> None:
    with torch.device('meta'):
        tokenizer = create_vit('vit_tiny_patch8_64').patch_embed
    assert (tokenizer.patch_size, tokenizer.img_size, tokenizer.num_patches) == (8, 64, 64)


def test_a_pre_training_tag_is_not_part_of_the_architecture() -> None:
    with torch.device('meta'):
        tagged = create_vit('vit_base_patch16_224.mae').state_dict()
        plain = create_vit('vit_base_patch16_224').state_dict()
    assert {k: v.shape for k, v in tagged.items()} == {k: v.shape for k, v in plain.items()}


@pytest.mark.parametrize(
    'name',
    [
        '',
        'resnet50',
        'vit_huge_patch14_dinov2',
        'vit_giant_patch14_224',
        'vit_base_patch16',
        'xvit_base_patch16_224',
    ],
)
def test_an_unknown_name_is_refused_with_examples(name: str) -> None:
    with pytest.raises(ValueError, match=r'unknown backbone .*vit_base_patch16_224') as caught:
        create_vit(name)
    assert '\n' not in str(caught.value)


def test_an_image_side_that_is_no_multiple_of_the_patch_is_refused() -> None:
    with pytest.raises(ValueError, match='img_size=100, patch_size=16'):
        create_vit('vit_base_patch16_224', img_size=100)


def test_drop_path_reaches_the_blocks() -> None:
    with torch.device('meta'):
        vit = create_vit('vit_tiny_patch16_224', drop_path_rate=0.22, uniform_drop_path=False)
    assert vit.blocks[11].drop_path1.drop_prob == pytest.approx(0.22)
    assert vit.blocks[1].drop_path2.drop_prob == pytest.approx(0.02)


def test_a_mask_token_can_be_asked_for() -> None:
    with torch.device('meta'):
        vit = create_vit('vit_small_patch14_dinov2', mask_token=True, dynamic_img_size=True)
    assert vit.mask_token is not None and vit.patch_embed.dynamic_img_size


@pytest.mark.parametrize(
    ('name', 'patch', 'largest', 'size'),
    [
        ('vit_base_patch14_dinov2', None, None, 224),
        ('vit_base_patch14_dinov2.lvd142m', None, 1024, 224),
        ('vit_small_patch14_dinov2', None, 64, 56),
        ('vit_small_patch14_dinov2', 8, 100, 96),
        ('vit_small_patch14_dinov2', None, 3, 14),
        ('vit_base_patch16_224', None, 64, None),
    ],
)
def test_tasks_build_dinov2_for_224_pixels_and_no_more_than_there_are(
    name: str, patch: int | None, largest: int | None, size: int | None
) -> None:
    assert task_size(name, patch, largest) == size
