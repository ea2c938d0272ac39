"""Groups of bands as slots: chosen by name, embedded and predicted apart."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.models import GroupChannelTokenizer
from explora_geo.models.tokenizers import CHANNEL_GROUPS, SENTINEL2

GROUPS = (('B04', 'B02'), ('B11', 'B08', 'B05'))
BANDS = ('B02', 'B04', 'B05', 'B08', 'B11')


def build(**kwargs: Any) -> GroupChannelTokenizer:
    return GroupChannelTokenizer(16, **{'img_size': 16, 'bands': BANDS, 'channel_groups': GROUPS, **kwargs})


@pytest.fixture
def image() -> Tensor:
    return torch.randn(2, 5, 16, 16)


def test_the_default_groups_are_the_papers_by_name() -> None:
    tokenizer = GroupChannelTokenizer(64)
    assert tokenizer.channel_groups == CHANNEL_GROUPS and tokenizer.bands == SENTINEL2
    assert tokenizer.indices == ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))
    assert (tokenizer.img_size, tokenizer.patch_size, tokenizer.num_slots) == (96, 8, 3)


def test_a_token_is_the_linear_map_of_its_groups_bands(image: Tensor) -> None:
    tokenizer = build()
    tokens, grid = tokenizer(image)
    assert tokens.shape == (2, 2, 4, 16) and grid == (2, 2)
    patch = image[1, [4, 3, 2], 8:16, 0:8].flatten()  # B11, B08, B05 of token 2
    expected = tokenizer.proj[1].weight.flatten(1) @ patch + tokenizer.proj[1].bias
    assert_close(tokens[1, 1, 2], expected, atol=1e-5, rtol=1e-5)


def test_the_order_of_the_bands_in_the_image_does_not_matter(image: Tensor) -> None:
    tokenizer = build()
    order = [3, 0, 4, 1, 2]
    other = build(bands=[BANDS[i] for i in order])
    other.load_state_dict(tokenizer.state_dict())
    assert torch.equal(other(image[:, order])[0], tokenizer(image)[0])
    assert torch.equal(other.patchify(image[:, order]), tokenizer.patchify(image))


def test_targets_hold_a_groups_bands_one_after_another_and_then_zeros(image: Tensor) -> None:
    tokenizer = build()
    target = tokenizer.patchify(image)
    assert tokenizer.target_sizes == (128, 192) and target.shape == (2, 2, 4, 192)
    assert torch.equal(target[0, 0, 1, :128], image[0, [1, 0], :8, 8:].flatten())
    assert not target[:, 0, :, 128:].any()
    assert torch.equal(target[0, 1, 3], image[0, [4, 3, 2], 8:, 8:].flatten())


def test_unpatchify_undoes_patchify() -> None:
    tokenizer = build(dynamic_img_size=True)
    image = torch.randn(2, 5, 24, 40)
    assert torch.equal(tokenizer.unpatchify(tokenizer.patchify(image), (3, 5)), image)


def test_targets_are_normalized_over_all_bands_of_a_patch(image: Tensor) -> None:
    tokenizer = build()
    mean, var = tokenizer.target_statistics(tokenizer.patchify(image))
    patch = image[1, :, :8, 8:]
    assert_close(mean[1, 0, 1, 0], patch.mean())
    assert_close(var[1, 0, 1, 0], patch.var())


def test_every_group_has_its_own_prediction(image: Tensor) -> None:
    tokenizer = build()
    layer = tokenizer.build_prediction(12)
    assert [tuple(m.weight.shape) for m in layer] == [(128, 12), (192, 12)]
    tokens = torch.randn(2, 2, 4, 12)
    pred = tokenizer.predict(layer, tokens)
    assert pred.shape == (2, 2, 4, 192) and not pred[:, 0, :, 128:].any()
    assert_close(pred[1, 1, 2], layer[1](tokens[1, 1, 2]))
    assert_close(pred[1, 0, 2, :128], layer[0](tokens[1, 0, 2]))


def test_satmaes_pairing_counts_predictions_in_image_order(image: Tensor) -> None:
    tokenizer = build(satmae_band_pairing=True)
    layer = tokenizer.build_prediction(12)
    tokens = torch.randn(2, 2, 4, 12)
    pred = tokenizer.predict(layer, tokens)
    listed = torch.cat([layer[0](tokens[:, 0]), layer[1](tokens[:, 1])], dim=-1).unflatten(-1, (5, 64))
    assert_close(pred[:, 0, :, :128], listed[:, :, [1, 0]].flatten(2))  # B04, B02 in the image
    assert_close(pred[:, 1], listed[:, :, [4, 3, 2]].flatten(2))


def test_positions_are_spatial_codes_next_to_group_codes() -> None:
    tokenizer = build()
    assert tokenizer.slot_dim == 4
    cls, patches = tokenizer.position(torch.randn(1, 5, 12), (2, 2))
    assert cls.shape == (1, 1, 16) and patches.shape == (1, 2, 4, 16)
    assert not cls[..., 12:].any()
    assert torch.equal(patches[0, 0, :, :12], patches[0, 1, :, :12])
    assert torch.equal(patches[0, 0, 1, 12:], patches[0, 0, 3, 12:])
    assert not torch.equal(patches[0, 0, 0, 12:], patches[0, 1, 0, 12:])


def test_group_codes_are_fixed_and_paper_wide() -> None:
    assert not any('channel_embed' in name for name, _ in build().named_parameters())
    with torch.device('meta'):
        widths = {d: GroupChannelTokenizer(d).slot_dim for d in (768, 1024, 192)}
        assert widths == {768: 256, 1024: 256, 192: 48}
    assert GroupChannelTokenizer(32).decoder_slot_codes(512, None).shape == (1, 4, 128)


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'channel_groups': (('B02', 'B04'), ('B05', 'B08'))}, r'groups \(B02, B04\) \(B05, B08\) and bands'),
        ({'channel_groups': (*GROUPS, ('B02',))}, 'must contain every band exactly once'),
        ({'channel_groups': (*GROUPS, ())}, 'must contain every band exactly once'),
        ({'bands': (*BANDS, 'B12')}, 'and bands B02, B04, B05, B08, B11, B12'),
        ({'bands': ('B02', 'B02')}, 'bands must be distinct'),
        ({'slot_dim': 5}, 'slot_dim must be a positive multiple of 2, got 5'),
        ({'slot_dim': 18}, 'slot_dim must be at most the width 16'),
        ({'decoder_slot_dim': 3}, 'decoder_slot_dim must be a positive multiple of 2, got 3'),
        ({'img_size': 20}, 'img_size=20, patch_size=8'),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build(**change)


def test_an_image_of_other_bands_is_refused_with_their_names() -> None:
    for read in (build(), build().patchify):
        with pytest.raises(ValueError, match=r'\(B, 5, H, W\) with bands B02, B04, B05, B08, B11, got'):
            read(torch.randn(1, 4, 16, 16))
