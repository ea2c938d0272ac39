"""Tests of the scene data module on two dates of a real NAIP crop."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.windows import Window, from_bounds

from explora_geo.datamodules import SceneDataModule, Statistics
from tests.http_ranges import Ranges, write_cog

Record = Callable[..., dict[str, list[dict[str, Any]]]]
NAIP = Path(__file__).parents[1] / 'data' / 'naip'
SCENES = sorted(NAIP.glob('*.tif'))
BANDS = ('red', 'green', 'blue', 'nir')


def test_a_trainer_gets_random_windows_and_a_grid_to_validate(record: Record) -> None:
    datamodule = SceneDataModule(
        NAIP, val_paths=SCENES[0], file_bands=BANDS, patch_size=64, length=6, batch_size=4
    )
    batches = record(datamodule)
    assert [batch['image'].shape for batch in batches['train']] == [(4, 4, 64, 64)]
    assert sum(len(batch['image']) for batch in batches['val']) == 16
    assert batches['val'][0]['image'].mean().abs() < 1


def test_random_windows_equal_what_rasterio_reads_on_either_date() -> None:
    torch.manual_seed(0)
    datamodule = SceneDataModule(
        NAIP, file_bands=BANDS, bands=['nir', 'green'], patch_size=32, length=16, batch_size=1
    )
    datamodule.setup('fit')
    matched = set()
    for batch in datamodule.train_dataloader():
        for number, path in enumerate(SCENES):
            with rasterio.open(path) as file:
                window = from_bounds(*batch['bounds'][0].tolist(), file.transform)
                window = Window(round(window.col_off), round(window.row_off), window.width, window.height)
                pixels = file.read([4, 2], window=window).astype(np.float32)
            if np.array_equal(pixels, batch['image'][0].numpy()):
                matched.add(number)
                break
        else:
            pytest.fail(f'no scene has the window {batch["bounds"]}')
    assert matched == {0, 1}


@pytest.mark.parametrize('workers', [0, 2])
def test_prediction_covers_each_scene_and_keeps_map_coordinates(workers: int, record: Record) -> None:
    datamodule = SceneDataModule(
        NAIP,
        predict_paths=[SCENES[1]],
        file_bands=BANDS,
        patch_size=64,
        batch_size=8,
        num_workers=workers,
        cache=True,
    )
    batches = record(datamodule, 'predict')
    images = torch.cat([batch['image'] for batch in batches['predict']])
    bounds = torch.cat([batch['bounds'] for batch in batches['predict']])
    assert len(images) == 16
    assert bounds.dtype == torch.float64
    with rasterio.open(SCENES[1]) as file:
        assert bounds[:, :2].amin(0).tolist() == [file.bounds.left, file.bounds.bottom]
        assert bounds[:, 2:].amax(0).tolist() == [file.bounds.right, file.bounds.top]
        first = file.read(window=from_bounds(*bounds[0].tolist(), file.transform))
    restored = images[0] * datamodule.std[:, None, None] + datamodule.mean[:, None, None]
    assert np.allclose(restored.numpy(), first, atol=1e-3)


def test_statistics_are_those_of_all_pixels_when_windows_cover_the_scene() -> None:
    datamodule = SceneDataModule(NAIP, file_bands=BANDS, patch_size=64)
    datamodule.setup('fit')
    pixels = []
    for path in SCENES:
        with rasterio.open(path) as file:
            pixels.append(file.read().reshape(4, -1).astype(np.float64))
    stacked = np.concatenate(pixels, axis=1)
    assert np.allclose(datamodule.mean.numpy(), stacked.mean(1), rtol=1e-4)
    assert np.allclose(datamodule.std.numpy(), stacked.std(1), rtol=1e-4)


def test_windows_larger_than_every_scene_are_refused() -> None:
    with pytest.raises(ValueError, match='patch_size=512 is larger than every scene'):
        SceneDataModule(NAIP, file_bands=BANDS, patch_size=512).setup('fit')
    with pytest.raises(ValueError, match='length must be at least 1'):
        SceneDataModule(NAIP, length=0)


@pytest.mark.parametrize('resolution', [0.3, 0.6, 0.0001, 10.0])
def test_windows_are_whole_whatever_the_resolution_rounds_to(tmp_path: Path, resolution: float) -> None:
    degrees = resolution < 0.1
    crs, (x, y) = ('EPSG:4326', (10.123, 50.07)) if degrees else ('EPSG:32633', (500000.1, 5000000.2))
    random = np.random.default_rng(0)
    for number, (height, width) in enumerate([(32, 32), (64, 96), (40, 20)]):
        corner = x + 123 * number * resolution, y + 71 * number * resolution
        place = rasterio.transform.from_origin(*corner, resolution, resolution)
        size = {'height': height, 'width': width, 'count': 3, 'dtype': 'uint8'}
        with rasterio.open(tmp_path / f'{number}.tif', 'w', crs=crs, transform=place, **size) as file:
            file.write(random.integers(1, 255, (3, height, width), dtype=np.uint8))
    datamodule = SceneDataModule(tmp_path, patch_size=32, batch_size=1)
    for stage in ('fit', 'predict'):
        datamodule.setup(stage)
    training = [batch['image'] for batch in datamodule.train_dataloader()]
    assert len(training) == 7 and all((image > 0).all() for image in training)
    shown = [batch['image'] for batch in datamodule.predict_dataloader()]
    # One window, two by three, and two that reach over the edges of the small scene.
    assert [float((image == 0).all(1).float().mean()) for image in shown] == [
        *([0] * 7),
        pytest.approx(12 / 32),
        pytest.approx(1 - 8 * 20 / 32**2),
    ]


@pytest.mark.parametrize('workers', [0, 2])
def test_windows_of_a_scene_behind_a_url_cost_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    monkeypatch.setenv('GDAL_HTTP_MAX_RETRY', '0')
    write_cog(tmp_path / 'scene.tif', 2048)
    with Ranges(tmp_path) as server, rasterio.open(tmp_path / 'scene.tif') as file:
        url = f'{server.url}/scene.tif'
        statistics = Statistics([100.0] * 3, [50.0] * 3)
        loading = {'batch_size': 1, 'num_workers': workers}
        datamodule = SceneDataModule(url, patch_size=64, length=4, statistics=statistics, **loading)
        datamodule.setup('fit')
        assert server.sent < 0.1 * (tmp_path / 'scene.tif').stat().st_size
        torch.manual_seed(0)
        for batch in datamodule.train_dataloader():
            window = from_bounds(*batch['bounds'][0].tolist(), file.transform)
            assert np.array_equal(batch['image'][0], file.read(window=window.round()))
        assert server.sent < 0.25 * (tmp_path / 'scene.tif').stat().st_size
        server.fail_after(0)
        with pytest.raises(ConnectionError, match=rf'{url} cannot be read'):
            list(datamodule.train_dataloader())
