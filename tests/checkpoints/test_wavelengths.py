"""Filters of spectral bands out of those of red, green and blue."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.checkpoints.wavelengths import WAVELENGTHS, patch_embed_by_wavelength
from explora_geo.models import GroupChannelTokenizer, PatchTokenizer
from explora_geo.models.tokenizers import RGB

GROUPS = (('B02', 'B05'), ('B11',))


@pytest.fixture
def source() -> dict[str, Tensor]:
    return {'patch_embed.proj.weight': torch.randn(16, 3, 8, 8), 'patch_embed.proj.bias': torch.randn(16)}


def test_bands_get_the_filters_nearest_in_wavelength(source: dict[str, Tensor]) -> None:
    tokenizer = GroupChannelTokenizer(16, 32, 8, ('B02', 'B05', 'B11'), channel_groups=GROUPS)
    found = patch_embed_by_wavelength(source, RGB, tokenizer)
    tokenizer.load_state_dict({k.removeprefix('patch_embed.'): v for k, v in found.items()}, strict=False)
    red, green, blue = source['patch_embed.proj.weight'].unbind(1)
    share = (WAVELENGTHS['B02'] - WAVELENGTHS['blue']) / (WAVELENGTHS['green'] - WAVELENGTHS['blue'])
    assert_close(tokenizer.proj[0].weight[:, 0], 1.5 * ((1 - share) * blue + share * green))
    assert_close(tokenizer.proj[0].weight[:, 1], 1.5 * red)  # beyond red there is nothing nearer
    assert_close(tokenizer.proj[1].weight[:, 0], 3 * red)
    for proj in tokenizer.proj:
        assert torch.equal(proj.bias, source['patch_embed.proj.bias'])


@torch.no_grad()
def test_a_grey_image_gives_every_group_the_token_it_gave_in_colour(source: dict[str, Tensor]) -> None:
    # Equal filters for all colours: however bands are mixed, grey pixels give the same token.
    source['patch_embed.proj.weight'][:] = source['patch_embed.proj.weight'][:, :1].clone()
    rgb = PatchTokenizer(16, 32, 8)
    rgb.load_state_dict({k.removeprefix('patch_embed.'): v for k, v in source.items()})
    tokenizer = GroupChannelTokenizer(16, 32, 8)
    found = patch_embed_by_wavelength(source, RGB, tokenizer)
    tokenizer.load_state_dict({k.removeprefix('patch_embed.'): v for k, v in found.items()}, strict=False)
    grey = torch.randn(2, 1, 32, 32)
    expected = rgb(grey.expand(-1, 3, -1, -1))[0]
    tokens = tokenizer(grey.expand(-1, 10, -1, -1))[0]
    for i in range(3):
        assert_close(tokens[:, i], expected[:, 0], atol=1e-4, rtol=1e-4)


def test_filters_are_resampled_to_the_patch_size(source: dict[str, Tensor]) -> None:
    tokenizer = PatchTokenizer(16, 32, 4, ('B04', 'B03', 'B02', 'B08'))
    found = patch_embed_by_wavelength(source, RGB, tokenizer)
    assert {k: tuple(v.shape) for k, v in found.items()} == {
        'patch_embed.proj.weight': (16, 4, 4, 4),
        'patch_embed.proj.bias': (16,),
    }


def test_bands_of_unknown_wavelength_are_refused(source: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match='unknown wavelength for bands VV, VH: use'):
        patch_embed_by_wavelength(source, RGB, PatchTokenizer(16, 32, 8, ('VV', 'VH')))


def test_a_source_without_one_embedding_is_refused(source: dict[str, Tensor]) -> None:
    tokenizer = PatchTokenizer(16, 32, 8, ('B04',))
    for state, bands in (({}, RGB), (source, ('red', 'green'))):
        with pytest.raises(
            ValueError, match='requires weights with a single patch embedding for bands red, green'
        ):
            patch_embed_by_wavelength(state, bands, tokenizer)
