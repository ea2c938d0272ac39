"""Polygons and points of finished maps."""

from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from explora_geo.maps.outputs import embedding_points, polygonize


@pytest.mark.parametrize('kind', ['polygons', 'points'])
def test_geoparquet_is_written(write_scene: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    pixels = np.zeros((2, 8, 8), dtype=np.float32)
    pixels[1] = np.arange(64).reshape(8, 8)
    pixels[:, 0, 0] = np.nan
    features = write_scene(pixels=pixels, transform=from_origin(0, 80, 10, 10))
    classes = write_scene(pixels=(pixels[:1] < 0).astype(np.uint8), name='classes.tif')
    out = tmp_path / 'v.parquet'

    if kind == 'polygons':
        polygonize(classes, out, ['a', 'b'])
    else:
        embedding_points(features, out)
    frame = gpd.read_parquet(out)
    assert len(frame) == (1 if kind == 'polygons' else 63)
    with rasterio.open(features) as source:
        assert frame.crs == source.crs
    if kind == 'points':
        assert frame['embedding'][0].tolist() == [0, 1] and frame.geometry[0].coords[0] == (15, 75)


def test_points_written_a_row_at_a_time_are_the_same(
    write_scene: Callable[..., Path], tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).normal(size=(3, 9, 5)).astype(np.float32)
    pixels[:, 4] = np.nan  # a whole row without features
    pixels[:, 8, 4] = np.nan
    features = write_scene(pixels=pixels, transform=from_origin(500_000, 5_000_000, 80, 80))
    frames = []
    for cells in (1, 10, 1 << 18):
        out = tmp_path / f'{cells}.parquet'
        embedding_points(features, out, cells)
        frames.append(gpd.read_parquet(out))
    assert [len(frame) for frame in frames] == [39, 39, 39]
    for frame in frames[:2]:
        assert frame.geometry.equals(frames[2].geometry) and frame.crs == frames[2].crs
        assert all((a == b).all() for a, b in zip(frame['embedding'], frames[2]['embedding'], strict=True))
    last = frames[2].iloc[-1]
    assert last['embedding'].tolist() == pixels[:, 8, 3].tolist()
    assert (last.geometry.x, last.geometry.y) == (500_000 + 3.5 * 80, 5_000_000 - 8.5 * 80)
