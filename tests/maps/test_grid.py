"""Tiles and blocks."""

import numpy as np
import pytest

from explora_geo.maps.grid import Box, TileGrid, blending_weights


@pytest.mark.parametrize(('height', 'width'), [(64, 64), (65, 200), (500, 77)])
@pytest.mark.parametrize('overlap', [0.0, 0.25, 0.5, 0.9])
def test_tiles_cover_every_pixel_and_stay_inside(height: int, width: int, overlap: float) -> None:
    grid = TileGrid(height, width, 64, overlap, 50)
    covered = np.zeros((height, width), dtype=int)
    for tile in {t for block in grid.blocks() for t in grid.tiles(block)}:
        assert tile.top >= 0 and tile.left >= 0 and tile.bottom <= height and tile.right <= width
        assert tile.shape == (64, 64)
        covered[tile.top : tile.bottom, tile.left : tile.right] += 1
    assert covered.min() >= 1


def test_blocks_part_the_scene_and_know_all_tiles_that_reach_into_them() -> None:
    grid = TileGrid(210, 170, 64, 0.4, 80)
    counts = np.zeros((210, 170), dtype=int)
    every = {t for block in grid.blocks() for t in grid.tiles(block)}
    for block in grid.blocks():
        counts[block.top : block.bottom, block.left : block.right] += 1
        reaching = {
            t
            for t in every
            if t.top < block.bottom and t.bottom > block.top and t.left < block.right and t.right > block.left
        }
        assert set(grid.tiles(block)) == reaching
    assert (counts == 1).all()


def test_tiles_of_patches_start_at_multiples_of_the_patch() -> None:
    grid = TileGrid(101, 135, 32, 0.3, 50, cell=8)
    assert (grid.height, grid.width, grid.block) == (96, 128, 48)
    assert all(v % 8 == 0 for block in grid.blocks() for t in grid.tiles(block) for v in t)


def test_weights_fade_to_the_edges_but_never_vanish() -> None:
    weights = blending_weights(16)
    assert np.allclose(weights, weights[::-1]) and np.allclose(weights, weights.T)
    assert (np.diff(weights[8, :8]) > 0).all() and weights.min() > 0


def test_what_cannot_be_tiled_is_refused() -> None:
    with pytest.raises(ValueError, match='scene of 40x100 pixels is smaller than a tile of 64'):
        TileGrid(40, 100, 64, 0.2, 512)
    with pytest.raises(ValueError, match='overlap must be'):
        TileGrid(100, 100, 64, 1.0, 512)
    assert Box(1, 2, 4, 9).shape == (3, 7)
