"""Polygons and points from finished maps."""

import importlib.util
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import rasterio
from rasterio.features import shapes
from rasterio.windows import Window

from explora_geo.maps.scene import EQUAL_AREA

SUFFIXES = ('.gpkg', '.parquet', '.geojson')


def check_vector_path(path: Path) -> None:
    """Refuse a file that could not be written in the end.

    Raises:
        ValueError: If its ending is unknown.
        ImportError: If the package that writes it is not installed.
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f'cannot write {path.name}: vector files end in {", ".join(SUFFIXES)}')
    if path.suffix == '.parquet' and importlib.util.find_spec('pyarrow') is None:
        raise ImportError(f'{path.name} needs pyarrow: pip install "explora_geo[parquet]", or write .gpkg')


def polygonise(
    raster: Path, out: Path, classes: Sequence[str], wanted: Sequence[str] = (), min_area: float = 0.0
) -> int:
    """Write the regions of a map of classes as polygons with their areas.

    Args:
        raster: Map of classes.
        out: `.gpkg`, `.parquet` or `.geojson` file to write, in the map's coordinates (GeoJSON: longitude
            and latitude).
        classes: Names of the classes.
        wanted: Classes to write; all if empty.
        min_area: Smallest area of a region, square metres.

    Returns:
        Number of polygons. Their columns are `class`, `name` and `area_m2`.

    Raises:
        ValueError: If a wanted class does not exist.
    """
    unknown = [name for name in wanted if name not in classes]
    if unknown:
        raise ValueError(f'the model has no class {unknown[0]!r}: its classes are {", ".join(classes)}')
    kept = {i for i, name in enumerate(classes) if not wanted or name in wanted}
    rows: list[dict[str, Any]] = []
    with rasterio.open(raster) as source:
        # Of the band itself, not of an array, so that GDAL reads line by line.
        for geometry, value in shapes(rasterio.band(source, 1)):
            if int(value) in kept:
                columns = {'class': int(value), 'name': classes[int(value)]}
                rows.append({'type': 'Feature', 'geometry': geometry, 'properties': columns})
        crs = source.crs
    empty: dict[str, list[Any]] = {'geometry': [], 'class': [], 'name': []}
    frame = gpd.GeoDataFrame.from_features(rows) if rows else gpd.GeoDataFrame(empty, geometry='geometry')
    frame = frame.set_crs(crs.to_wkt())
    frame['area_m2'] = frame.to_crs(EQUAL_AREA).area
    frame = frame[frame['area_m2'] >= min_area].reset_index(drop=True)
    write_frame(frame, out)
    return len(frame)


def embedding_points(raster: Path, out: Path, cells: int = 1 << 18) -> int:
    """Write features of patches as one point per patch, with the features as a list.

    Rows of the raster are read and written a few at a time, so that memory does not grow with the scene.

    Args:
        raster: Features as bands; NaN where there are none.
        out: `.parquet` file to write.
        cells: Patches in memory at once.

    Returns:
        Number of points.
    """
    check_vector_path(out)
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    count = 0
    with rasterio.open(raster) as source, _beside(out) as temporary:
        columns = {'embedding': pa.list_(pa.float32()), 'geometry': pa.binary()}
        schema = pa.schema(columns, metadata={'geo': json.dumps(_geoparquet(source.crs))})
        height = max(1, cells // source.width)
        with ParquetWriter(temporary, schema) as writer:
            for top in range(0, source.height, height):
                window = Window(0, top, source.width, min(height, source.height - top))
                values = source.read(window=window)
                row, column = np.nonzero(np.isfinite(values).all(0))
                x, y = rasterio.transform.xy(source.window_transform(window), row, column)
                points = gpd.GeoSeries.from_xy(x, y).to_wkb().tolist()
                features = list(values[:, row, column].T)
                writer.write_table(pa.table({'embedding': features, 'geometry': points}, schema))
                count += len(points)
    return count


def _geoparquet(crs: Any) -> dict[str, Any]:
    """Metadata of a GeoParquet 1.0 file of points."""
    column = {
        'encoding': 'WKB',
        'geometry_types': ['Point'],
        'crs': pyproj.CRS.from_wkt(crs.to_wkt()).to_json_dict(),
    }
    return {'version': '1.0.0', 'primary_column': 'geometry', 'columns': {'geometry': column}}


def write_frame(frame: gpd.GeoDataFrame, out: Path) -> None:
    """Write a vector file in one piece or not at all."""
    check_vector_path(out)
    with _beside(out) as temporary:
        if out.suffix == '.parquet':
            frame.to_parquet(temporary)
        elif out.suffix == '.geojson':
            frame.to_crs('EPSG:4326').to_file(temporary, driver='GeoJSON', engine='pyogrio')
        else:
            frame.to_file(temporary, driver='GPKG', engine='pyogrio')


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A temporary file with the same ending, which drivers look at."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        temporary = Path(folder) / path.name
        yield temporary
        os.replace(temporary, path)
