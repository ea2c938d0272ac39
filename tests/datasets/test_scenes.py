"""Tests of whole scenes on two dates of a real NAIP crop."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
from matplotlib import pyplot as plt
from rasterio.windows import Window

from explora_geo.datasets import SceneDataset

NAIP = Path(__file__).parents[1] / 'data' / 'naip'
SCENES = sorted(NAIP.glob('*.tif'))
BANDS = ('red', 'green', 'blue', 'nir')


def query(dataset: SceneDataset, scene: int, window: Window) -> tuple[slice, slice, slice]:
    """Express a window in pixels of one scene as map coordinates and time."""
    with rasterio.open(dataset.index['filepath'].iloc[scene]) as file:
        left, bottom, right, top = file.window_bounds(window)
    interval = dataset.index.index[scene]
    return slice(left, right), slice(bottom, top), slice(interval.left, interval.right)


@pytest.mark.parametrize('scene', [0, 1])
def test_a_window_of_each_date_equals_what_rasterio_reads(scene: int) -> None:
    dataset = SceneDataset(NAIP, bands=('nir', 'red'), file_bands=BANDS)
    window = Window(32, 96, 48, 40)
    sample = dataset[query(dataset, scene, window)]
    with rasterio.open(SCENES[scene]) as file:
        expected = file.read([4, 1], window=window).astype(np.float32)
        bounds = file.window_bounds(window)
    assert np.array_equal(sample['image'].numpy(), expected)
    assert sample['bounds'].tolist() == list(bounds)
    assert set(sample) == {'image', 'bounds'}


def test_dates_in_file_names_tell_scenes_apart() -> None:
    dataset = SceneDataset(NAIP, file_bands=BANDS)
    assert len(dataset) == 2
    assert [interval.left for interval in dataset.index.index] == [
        pd.Timestamp(2017, 8, 27),
        pd.Timestamp(2020, 8, 31),
    ]


def test_scenes_without_dates_do_not_hide_each_other(tmp_path: Path) -> None:
    for name, path in zip('ab', SCENES, strict=True):
        shutil.copy(path, tmp_path / f'{name} 99999999.tif')
    dataset = SceneDataset(tmp_path, file_bands=BANDS)
    window = Window(0, 0, 64, 64)
    first, second = (dataset[query(dataset, scene, window)]['image'] for scene in (0, 1))
    assert not np.array_equal(first.numpy(), second.numpy())
    with rasterio.open(SCENES[1]) as file:
        assert np.array_equal(second.numpy(), file.read(window=window).astype(np.float32))


def test_files_may_be_given_one_by_one_and_transforms_apply() -> None:
    def halve(sample: dict[str, Any]) -> dict[str, Any]:
        return {'image': sample['image'] / 2}

    dataset = SceneDataset([SCENES[1], SCENES[1]], file_bands=BANDS, transforms=halve)
    assert len(dataset) == 1
    image = dataset[query(dataset, 0, Window(0, 0, 8, 8))]['image']
    with rasterio.open(SCENES[1]) as file:
        assert np.array_equal(image.numpy() * 2, file.read(window=Window(0, 0, 8, 8)))


def test_bands_and_paths_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='4 unnamed uint8 bands'):
        SceneDataset(NAIP)
    with pytest.raises(ValueError, match='you requested swir'):
        SceneDataset(NAIP, bands=['swir'], file_bands=BANDS)
    with pytest.raises(FileNotFoundError, match='does not exist'):
        SceneDataset(tmp_path / 'nowhere')
    with pytest.raises(FileNotFoundError, match='no usable georeferenced scene'):
        SceneDataset(tmp_path)


def test_unusable_scenes_are_named_and_left_out(tmp_path: Path) -> None:
    good = tmp_path / 'good.tif'
    shutil.copy(SCENES[0], good)
    (tmp_path / 'torn.tif').write_bytes(b'no image')
    with rasterio.open(good) as file:
        profile, pixels = file.profile, file.read()
    with rasterio.open(tmp_path / 'two.tif', 'w', **{**profile, 'count': 2}) as file:
        file.write(pixels[:2])
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with rasterio.open(tmp_path / 'lost.tif', 'w', **{**profile, 'crs': None, 'transform': None}) as file:
            file.write(pixels)
    with pytest.warns(UserWarning, match='Skipping') as caught:
        dataset = SceneDataset(tmp_path, file_bands=BANDS)
    assert len(dataset) == 1
    text = ' '.join(str(warning.message) for warning in caught)
    assert all(name in text for name in ('torn.tif', 'two.tif', 'lost.tif'))
    assert 'no coordinate reference system' in text and '2 bands, expected 4' in text
    with pytest.raises(ValueError, match=r'lost\.tif: has no .*; repair it'):
        SceneDataset(tmp_path, file_bands=BANDS, strict=True)


@pytest.mark.parametrize('nodata', [None, float('nan')])
def test_nan_is_filled_only_where_it_means_nodata(tmp_path: Path, nodata: float | None) -> None:
    with rasterio.open(SCENES[0]) as file:
        profile, pixels = file.profile, file.read().astype(np.float32)
    pixels[:, :16, :16] = np.nan
    with rasterio.open(tmp_path / 'a.tif', 'w', **{**profile, 'dtype': 'float32', 'nodata': nodata}) as file:
        file.write(pixels)
    dataset = SceneDataset(tmp_path, file_bands=BANDS)
    sample = dataset[query(dataset, 0, Window(0, 0, 32, 32))]
    if nodata is None:
        assert 'NaN or infinite' in sample['skipped']
        strict = SceneDataset(tmp_path, file_bands=BANDS, strict=True)
        with pytest.raises(ValueError, match='NaN or infinite'):
            strict[query(strict, 0, Window(0, 0, 32, 32))]
    else:
        others = np.nanmean(pixels[:, :32, :32], (1, 2), dtype=np.float64)
        assert np.allclose(sample['image'][:, :16, :16].numpy(), others[:, None, None])
        assert np.array_equal(sample['image'][:, 16:].numpy(), pixels[:, 16:32, :32])


def test_what_a_window_lacks_is_like_the_rest_of_it(tmp_path: Path) -> None:
    with rasterio.open(SCENES[0]) as file:
        profile, pixels = file.profile, file.read()
    pixels = pixels.astype(np.int16)
    pixels[:, :40, :40] = -9999
    with rasterio.open(tmp_path / 'a.tif', 'w', **{**profile, 'dtype': 'int16', 'nodata': -9999}) as file:
        file.write(pixels)
    dataset = SceneDataset(tmp_path, file_bands=BANDS)
    image = dataset[query(dataset, 0, Window(-16, 64, 32, 32))]['image'].numpy()  # half of it is outside
    inside = pixels[:, 64:96, :16]
    assert np.array_equal(image[:, :, 16:], inside)
    assert np.abs(image[:, :, :16] - inside.mean((1, 2))[:, None, None]).max() < 1e-3
    empty = query(dataset, 0, Window(0, 0, 32, 32))
    assert 'only nodata (-9999)' in dataset[empty]['skipped']
    strict = SceneDataset(tmp_path, file_bands=BANDS, strict=True)
    with pytest.raises(ValueError, match=r'only nodata \(-9999\)'):
        strict[empty]


def test_a_scene_cut_short_is_skipped_with_its_window(tmp_path: Path) -> None:
    path = tmp_path / 'a.tif'
    path.write_bytes(SCENES[0].read_bytes()[:60000])
    dataset = SceneDataset(path, file_bands=BANDS)
    sample = dataset[query(dataset, 0, Window(128, 128, 64, 64))]
    assert 'cannot be read' in sample['skipped']


def test_scenes_plot_in_true_colour() -> None:
    dataset = SceneDataset(NAIP, file_bands=BANDS)
    sample = dataset[query(dataset, 0, Window(0, 0, 64, 64))]
    fig = dataset.plot(sample, suptitle='NAIP')
    assert fig.axes[0].images[0].get_array().shape == (64, 64, 3)
    plt.close('all')


def test_the_catalogue_names_scene_time_and_place() -> None:
    catalog = SceneDataset(NAIP, file_bands=BANDS).catalog
    assert [str(t.date()) for t in catalog['start']] == ['2017-08-27', '2020-08-31']
    assert catalog.crs == 'EPSG:4326'
    west, south, east, north = catalog.total_bounds
    assert -105 < west < east < -96 and 45 < south < north < 49.1  # North Dakota


def test_scenes_of_other_bands_or_another_range_are_left_out_and_each_has_its_nodata(tmp_path: Path) -> None:
    with rasterio.open(SCENES[0]) as file:
        profile, pixels = file.profile, file.read().astype(np.int16)
    written: dict[str, tuple[np.ndarray[Any, Any], tuple[str, ...], float | None]] = {
        'a_20200101': (pixels, BANDS, None),
        'b_20200102': (pixels, BANDS, -9999),
        'c_20200103': (pixels.astype(np.uint8), BANDS, None),
        'd_20200104': (pixels, ('nir', *BANDS[:3]), None),
    }
    for name, (values, bands, nodata) in written.items():
        values = values.copy()
        if nodata is not None:
            values[:, :16, :16] = nodata
        kept = {**profile, 'dtype': values.dtype, 'nodata': nodata}
        with rasterio.open(tmp_path / f'{name}.tif', 'w', **kept) as file:
            file.write(values)
            file.descriptions = bands
    with pytest.warns(UserWarning, match='Skipping') as caught:
        dataset = SceneDataset(tmp_path)
    text = ' '.join(str(warning.message) for warning in caught)
    assert 'c_20200103.tif: has uint8 pixels, but the scenes before it have 16-bit pixels' in text
    assert 'd_20200104.tif: has the bands' in text and len(dataset) == 2
    first, second = (dataset[query(dataset, i, Window(0, 0, 32, 32))]['image'].numpy() for i in (0, 1))
    assert np.array_equal(first, pixels[:, :32, :32])
    assert np.array_equal(second[:, 16:], first[:, 16:]) and second.min() >= first.min()
