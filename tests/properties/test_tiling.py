"""Maps of scenes, tiles and blocks of any size: every pixel once, and an average of what was predicted."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from explora_geo.maps.grid import Box, TileGrid, blending_weights
from explora_geo.maps.model import Blend
from explora_geo.models.normalization import Normalization


@st.composite
def grids(draw: st.DrawFn) -> TileGrid:
    """Grids of scenes that are at least as large as a tile, of patches too."""
    step = draw(st.sampled_from([1, 2, 4]))
    tile = step * draw(st.integers(1, 8))
    height, width = (draw(st.integers(tile, 60)) for _ in range(2))
    overlap = draw(st.floats(0, 0.95))
    return TileGrid(height, width, tile, overlap, draw(st.integers(1, 70)), step)


class Scene:
    """A scene in memory: the part of `Scene` that prediction uses."""

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels

    def open(self) -> 'Scene':
        return self

    def __enter__(self) -> 'Scene':
        return self

    def __exit__(self, *args: object) -> None:
        """Nothing to close."""

    def read(self, source: object, box: Box) -> tuple[np.ndarray, np.ndarray]:
        window = self.pixels[:, box.top : box.bottom, box.left : box.right]
        return window, np.isfinite(window).all(0)


@given(grids())
def test_blocks_hold_every_pixel_once_and_tiles_every_pixel_of_their_block(grid: TileGrid) -> None:
    counts = np.zeros((grid.height, grid.width), dtype=int)
    for block in grid.blocks():
        counts[block.top : block.bottom, block.left : block.right] += 1
        covered = np.zeros_like(counts)
        for tile in grid.tiles(block):
            assert (
                0 <= tile.top and tile.bottom <= grid.height and 0 <= tile.left and tile.right <= grid.width
            )
            covered[tile.top : tile.bottom, tile.left : tile.right] += 1
        assert covered[block.top : block.bottom, block.left : block.right].all()
    assert (counts == 1).all()


@given(grids())
def test_the_weights_of_a_pixel_sum_to_1_once_normalized(grid: TileGrid) -> None:
    total = np.zeros((grid.height, grid.width), dtype=np.float64)
    weights = blending_weights(grid.tile)
    tiles = {tile for block in grid.blocks() for tile in grid.tiles(block)}
    for tile in tiles:
        total[tile.top : tile.bottom, tile.left : tile.right] += weights
    assert total.min() > 0
    shares = sum(
        np.pad(weights, ((t.top, grid.height - t.bottom), (t.left, grid.width - t.right))) / total
        for t in tiles
    )
    assert np.allclose(shares, 1)


@settings(max_examples=15)
@given(grids(), st.integers(0, 5))
def test_a_function_of_single_pixels_is_mapped_as_if_there_were_no_tiles(grid: TileGrid, holes: int) -> None:
    grid = replace(grid, cell=1)
    generator = np.random.default_rng(grid.height * 100 + grid.width)
    pixels = generator.normal(size=(2, grid.height, grid.width)).astype(np.float32)
    for _ in range(holes):
        pixels[0, generator.integers(grid.height), generator.integers(grid.width)] = np.nan
    scene, mean, std = Scene(pixels), torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.5])
    normalization = Normalization((0.5, -1.0), (2.0, 0.5))

    def function(image: Tensor) -> Tensor:
        return torch.stack([image[:, 0] + 3 * image[:, 1], image[:, 0] ** 2], dim=1)

    expected = function(((torch.from_numpy(pixels) - mean[:, None, None]) / std[:, None, None])[None])[
        0
    ].numpy()
    for block in grid.blocks():
        values, valid = Blend(scene, grid, function, normalization).predict(None, block)  # type: ignore[arg-type]
        inside = np.s_[:, block.top : block.bottom, block.left : block.right]
        assert (valid == np.isfinite(pixels[inside]).all(0)).all()
        if values is not None:
            np.testing.assert_allclose(values[:, valid], expected[inside][:, valid], atol=1e-3, rtol=1e-3)
