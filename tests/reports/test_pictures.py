"""Pictures of two backbones on the same tiles."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from explora_geo.models import ViT
from explora_geo.reports import compute_pictures, display_tiles
from explora_geo.reports.pictures import data_uri, feature_colors, patch_maps

RGB = ('red', 'green', 'blue')


def named(backbones: tuple[ViT, ViT]) -> dict[str, ViT]:
    return dict(zip(('source', 'adapted'), backbones, strict=True))


def test_tiles_are_shown_as_they_were(sample: Tensor, pictures: dict[str, Any]) -> None:
    tile = display_tiles([100.0] * 3, [50.0] * 3, RGB)(sample[:1])[0]
    expected = (sample[0] * 50 + 100).permute(1, 2, 0).clamp(0, 255).numpy()
    assert tile.shape == (64, 64, 3) and np.abs(tile - expected).max() <= 1
    assert np.array_equal(pictures['tiles'][0], tile)


def test_true_color_is_found_by_name_and_other_bands_are_gray(sample: Tensor) -> None:
    tiles = torch.cat([sample.flip(1), sample[:, :1]], dim=1)
    mean, std = [100.0] * 4, [50.0] * 4
    shown = display_tiles(mean, std, ('B02', 'B03', 'B04', 'B08'))(tiles)
    assert np.array_equal(shown, display_tiles(mean[:3], std[:3], RGB)(sample))
    gray = display_tiles(mean, std, ('a', 'b', 'c', 'd'), high=None)(tiles)
    assert np.array_equal(gray[..., 0], gray[..., 2]) and gray.min() == 0 and gray.max() == 255


def test_neighbors_are_other_tiles_of_the_gallery(pictures: dict[str, Any]) -> None:
    gallery, queries = pictures['gallery'], pictures['queries']
    assert len(queries) == 12 and len(pictures['gallery_names']) == len(gallery)
    for kind in ('source', 'adapted'):
        found = pictures[f'neighbors_{kind}']
        assert found.shape == (12, 5) and found.max() < len(gallery)
        assert not (found == queries[:, None]).any()
    assert (pictures['neighbors_source'] != pictures['neighbors_adapted']).any()


def test_a_copy_of_a_tile_is_its_nearest_neighbor(sample: Tensor, backbones: tuple[ViT, ViT]) -> None:
    images = torch.cat([sample[:6], sample[:6]])
    found = compute_pictures(
        dict(zip(('source', 'adapted'), backbones, strict=True)),
        images,
        display_tiles([0] * 3, [1] * 3, RGB),
        neighbors=1,
    )
    assert found['neighbors_adapted'][:, 0].tolist() == [*range(6, 12), *range(6)]
    assert found['names'][0] == 'tile 1' and found['names'][-1] == 'tile 12'


def test_features_have_enough_patches_and_the_backbone_is_left_as_it_was(
    sample: Tensor, backbones: tuple[ViT, ViT]
) -> None:
    vit = backbones[0]
    found = patch_maps(vit, sample[:2])
    assert found.shape == (2, 14, 14, 32) and not vit.patch_embed.dynamic_img_size
    same = patch_maps(vit, sample[:2], grid=8)
    with torch.no_grad():
        assert np.allclose(same.reshape(2, 64, 32), vit(sample[:2]).patches[:, 0], atol=1e-5)


def test_one_pca_colors_both() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(3, 4, 5, 8)) * [8, 6, 4, 1, 1, 1, 1, 1]
    before, after = feature_colors(features, features)
    assert before.shape == (3, 4, 5, 3) and before.dtype == np.uint8 and np.array_equal(before, after)
    shifted, _ = feature_colors(features, 2 * features + 7)
    assert np.array_equal(shifted, before)
    swapped = feature_colors(features, features[..., ::-1])
    assert not np.array_equal(*swapped)


def test_flat_features_and_narrow_ones_have_colors() -> None:
    flat = np.ones((2, 3, 3, 2))
    assert feature_colors(flat, flat)[0].shape == (2, 3, 3, 3)


@pytest.mark.parametrize('shape', [(2, 3, 3), (2, 3, 4, 4)])
def test_features_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match='must all have shape'):
        feature_colors(np.ones((2, 3, 3, 4)), np.ones(shape))


def test_pictures_are_scaled_down_never_up(sample: Tensor) -> None:
    tile = display_tiles([100.0] * 3, [50.0] * 3, RGB)(sample[:1])[0]
    assert data_uri(tile).startswith('data:image/png;base64,')
    assert len(data_uri(tile, 32, 60)) < len(data_uri(tile, 512, 60))
    assert data_uri(tile, 512, 60) == data_uri(tile, 64, 60)


def test_a_single_tile_is_refused(sample: Tensor, backbones: tuple[ViT, ViT]) -> None:
    with pytest.raises(ValueError, match='at least 2 tiles'):
        compute_pictures(
            dict(zip(('source', 'adapted'), backbones, strict=True)),
            sample[:1],
            display_tiles([0] * 3, [1] * 3, RGB),
        )


def test_reconstructions_come_back_with_the_seed(pictures: dict[str, Any]) -> None:
    found = pictures['reconstructions']
    assert list(found) == ['tile', 'masked', 'reconstructed']
    assert all(stack.shape == (8, 64, 64, 3) for stack in found.values())
    hidden = (found['masked'] != found['tile']).any(-1).mean()
    assert 0.5 < hidden <= 0.8  # three quarters of the patches
