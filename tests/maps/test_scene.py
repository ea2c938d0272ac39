"""Scenes: bands by name, nodata, mistakes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from explora_geo.maps.grid import Box
from explora_geo.maps.scene import Scene

NAIP = sorted((Path(__file__).parents[1] / 'data' / 'naip').glob('*.tif'))
NAMES = ('red', 'green', 'blue', 'nir')


def test_bands_are_read_by_name() -> None:
    scene = Scene(NAIP[0], ['nir', 'red'], NAMES)
    with scene.open() as source, rasterio.open(NAIP[0]) as plain:
        pixels, valid = scene.read(source, Box(10, 20, 50, 70))
        assert np.array_equal(pixels, plain.read([4, 1])[:, 10:50, 20:70])
    assert valid.all() and scene.bands == ('nir', 'red')


def test_nodata_is_where_every_band_is_nodata(write_scene: Callable[..., Path]) -> None:
    pixels = np.full((3, 64, 64), 9, dtype=np.uint8)
    pixels[:, :10] = 0
    pixels[0, 20:30] = 0
    scene = Scene(write_scene(pixels=pixels, nodata=0))
    with scene.open() as source:
        _, valid = scene.read(source, Box(0, 0, 64, 64))
    assert not valid[:10].any() and valid[10:].all()
    floats = np.ones((3, 64, 64), dtype=np.float32)
    floats[1, 5] = np.nan
    scene = Scene(write_scene(pixels=floats, name='nan.tif', nodata=np.nan), file_bands=NAMES[:3])
    with scene.open() as source:
        _, valid = scene.read(source, Box(0, 0, 64, 64))
    assert not valid[5].any() and valid.sum() == 63 * 64


def test_statistics_leave_nodata_out(write_scene: Callable[..., Path]) -> None:
    pixels = np.random.default_rng(0).integers(50, 200, (3, 96, 96)).astype(np.uint8)
    pixels[:, :48] = 0
    found = Scene(write_scene(pixels=pixels, nodata=0)).statistics()
    assert np.allclose(found.mean, pixels[:, 48:].mean((1, 2)), atol=1e-6)
    assert np.allclose(found.std, pixels[:, 48:].std((1, 2)), atol=1e-6)
    with pytest.raises(ValueError, match='only nodata in the sampled'):
        Scene(write_scene(pixels=0 * pixels, nodata=0, name='empty.tif')).statistics()


@pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')
def test_mistakes_are_named(write_scene: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match='scene not found'):
        Scene(tmp_path / 'missing.tif')
    with pytest.raises(ValueError, match='no coordinate reference system'):
        Scene(write_scene(crs=None, name='nowhere.tif'))
    with pytest.raises(ValueError, match=r'reads the bands B8A, red, but scene\.tif has red, green, blue'):
        Scene(write_scene(), ['B8A', 'red'])
    (tmp_path / 'text.tif').write_text('no raster')
    with pytest.raises(ValueError, match=r'text\.tif cannot be read'):
        Scene(tmp_path / 'text.tif')
