"""Patches: their order, their targets and what does not fit."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from explora_geo.models import PatchTokenizer

SENTINEL = ('blue', 'green', 'red', 'nir', 'swir1')


def test_a_token_is_the_linear_map_of_its_own_patch(images: Tensor) -> None:
    tokenizer = PatchTokenizer(16, img_size=32, patch_size=8)
    tokens, grid = tokenizer(images)
    assert tokens.shape == (8, 1, 16, 16) and grid == (4, 4)
    patch = images[2, :, 8:16, 24:32]  # second row, last column: token 1 * 4 + 3
    expected = tokenizer.proj.weight.flatten(1) @ patch.flatten() + tokenizer.proj.bias
    assert_close(tokens[2, 0, 7], expected, atol=1e-5, rtol=1e-5)


def test_targets_hold_the_pixels_of_a_patch_band_after_band(images: Tensor) -> None:
    tokenizer = PatchTokenizer(16, img_size=32, patch_size=8)
    target = tokenizer.patchify(images)
    assert target.shape == (8, 1, 16, tokenizer.target_dim) and tokenizer.target_dim == 192
    assert torch.equal(target[1, 0, 6], images[1, :, 8:16, 16:24].flatten())


@pytest.mark.parametrize(('height', 'width'), [(32, 32), (16, 48)])
def test_unpatchify_undoes_patchify(height: int, width: int) -> None:
    tokenizer = PatchTokenizer(4, 32, 4, SENTINEL, dynamic_img_size=True)
    image = torch.randn(2, 5, height, width)
    patches = tokenizer.patchify(image)
    assert torch.equal(tokenizer.unpatchify(patches, (height // 4, width // 4)), image)


def test_any_number_of_bands_is_read() -> None:
    for count in (1, 2, 5, 13):
        tokenizer = PatchTokenizer(8, 16, 8, [f'B{i}' for i in range(count)])
        assert tokenizer(torch.randn(2, count, 16, 16))[0].shape == (2, 1, 4, 8)


@pytest.mark.parametrize(
    ('shape', 'sentence'),
    [
        ((2, 3, 32, 32), r'\(B, 5, H, W\) with bands blue, green, red, nir, swir1, got shape'),
        ((5, 32, 32), 'got shape'),
        ((2, 5, 30, 32), 'multiples of the patch size 8, got 30x32'),
        ((2, 5, 40, 40), 'built for 32x32 images, got 40x40'),
    ],
)
def test_an_image_that_does_not_fit_is_refused(shape: tuple[int, ...], sentence: str) -> None:
    tokenizer = PatchTokenizer(8, 32, 8, SENTINEL)
    for read in (tokenizer, tokenizer.patchify):
        with pytest.raises(ValueError, match=sentence):
            read(torch.randn(shape))


@pytest.mark.parametrize(('img_size', 'patch_size'), [(30, 8), (4, 8)])
def test_sizes_that_do_not_fit_each_other_are_refused(img_size: int, patch_size: int) -> None:
    with pytest.raises(ValueError, match=f'img_size={img_size}, patch_size={patch_size}'):
        PatchTokenizer(8, img_size, patch_size)


@pytest.mark.parametrize('bands', [(), ('red', 'green', 'red')])
def test_bands_must_be_distinct_names(bands: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match='bands must be distinct names'):
        PatchTokenizer(8, 32, 8, bands)


def test_dynamic_sizes_resample_the_patch_positions_and_not_the_class_tokens() -> None:
    tokenizer = PatchTokenizer(8, 32, 8, dynamic_img_size=True)
    stored = torch.randn(1, 17, 8)
    cls, patches = tokenizer.position(stored, (2, 6))
    assert torch.equal(cls, stored[:, :1]) and patches.shape == (1, 1, 12, 8)
    assert tokenizer(torch.randn(1, 3, 16, 48))[1] == (2, 6)
