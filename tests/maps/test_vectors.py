"""GeoParquet, where the package that writes it is installed."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin

from explora_geo.maps.vectors import embedding_points, polygonise


@pytest.mark.parametrize('kind', ['polygons', 'points'])
def test_geoparquet_is_written_or_its_package_named(
    write_scene: Callable[..., Path], tmp_path: Path, kind: str
) -> None:
    pixels = np.zeros((2, 8, 8), dtype=np.float32)
    pixels[1] = np.arange(64).reshape(8, 8)
    pixels[:, 0, 0] = np.nan
    features = write_scene(pixels=pixels, transform=from_origin(0, 80, 10, 10))
    classes = write_scene(pixels=(pixels[:1] < 0).astype(np.uint8), name='classes.tif')
    out = tmp_path / 'v.parquet'

    def write() -> int:
        return polygonise(classes, out, ['a', 'b']) if kind == 'polygons' else embedding_points(features, out)

    if importlib.util.find_spec('pyarrow') is None:
        with pytest.raises(ImportError, match=r'explora_geo\[parquet\]'):
            write()
        assert not out.exists()
        return
    assert write() == (1 if kind == 'polygons' else 63)
    frame = gpd.read_parquet(out)
    with rasterio.open(features) as source:
        assert frame.crs == source.crs
    if kind == 'points':
        assert frame['embedding'][0].tolist() == [0, 1] and frame.geometry[0].coords[0] == (15, 75)
