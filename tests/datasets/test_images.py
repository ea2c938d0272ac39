"""Pixels without data in a real tile of 13 bands."""

from pathlib import Path

import numpy as np
import pytest
import rasterio

from explora_geo.bands import canonical
from explora_geo.datasets import FolderDataset
from explora_geo.datasets.images import BadTileError, read_image

TILE = next((Path(__file__).parents[1] / 'data' / 'eurosat_ms' / 'River').glob('*.tif'))
NAMES = tuple(f'B{i}' for i in range(13))
CHOSEN = [3, 2, 1]


@pytest.mark.parametrize(('nodata', 'dtype'), [(0, 'uint16'), (-9999, 'int16'), (np.nan, 'float32')])
def test_pixels_without_data_become_the_mean_of_the_others(tmp_path: Path, nodata: float, dtype: str) -> None:
    with rasterio.open(TILE) as file:
        profile, pixels = file.profile, file.read().astype(dtype)
    whole = pixels[CHOSEN].copy()
    pixels[:, 10:30, 40:] = nodata
    pixels[3, 50, 50] = 0  # dark in one band alone
    path = tmp_path / 'a.tif'
    with rasterio.open(path, 'w', **{**profile, 'dtype': dtype, 'nodata': nodata}) as file:
        file.write(pixels)
    found = read_image(path, NAMES, CHOSEN)
    hole = np.zeros((64, 64), bool)
    hole[10:30, 40:] = True
    whole[0, 50, 50] = 0
    assert found.dtype == dtype and np.array_equal(found[:, ~hole], whole[:, ~hole])
    mean = whole[:, ~hole].mean(1, dtype=np.float64)
    assert np.abs(found[:, hole] - mean[:, None]).max() <= 0.5


def test_a_band_without_data_is_named(tmp_path: Path) -> None:
    with rasterio.open(TILE) as file:
        profile, pixels = file.profile, file.read().astype(np.float32)
    pixels[2] = np.nan
    path = tmp_path / 'a.tif'
    with rasterio.open(path, 'w', **{**profile, 'dtype': 'float32', 'nodata': np.nan}) as file:
        file.write(pixels)
    with pytest.raises(BadTileError, match=r'only nodata \(nan\)'):
        read_image(path, NAMES, CHOSEN)
    assert read_image(path, NAMES, [3, 4]).shape == (2, 64, 64)


def test_bands_are_found_by_the_names_a_file_states(tmp_path: Path) -> None:
    with rasterio.open(TILE) as file:
        profile, pixels = file.profile, file.read([4, 3, 2])
    stated = {'a': ('red', 'green', 'blue'), 'b': ('B', 'R', 'G'), 'c': ('red', 'green', 'nir'), 'd': ()}
    for name, bands in stated.items():
        order = [('red', 'green', 'blue').index(canonical(b)) for b in bands] if name in 'ab' else [0, 1, 2]
        with rasterio.open(tmp_path / f'{name}.tif', 'w', **{**profile, 'count': 3}) as file:
            file.write(pixels[order])
            if bands:
                file.descriptions = bands
    dataset = FolderDataset(tmp_path, bands=['blue', 'red'])
    for index in (0, 1, 3):  # a file that states nothing is read by position
        assert np.array_equal(dataset[index]['image'].numpy(), pixels[[2, 0]].astype(np.float32))
    assert "expected ('red', 'green', 'blue'); if only the names differ, set" in dataset[2]['skipped']
    by_position = FolderDataset(tmp_path, file_bands=['red', 'green', 'blue'])
    assert np.array_equal(by_position[1]['image'].numpy(), pixels[[2, 0, 1]].astype(np.float32))
