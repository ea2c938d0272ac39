"""Footprints of a dataset's images as a table for QGIS and geopandas."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import rasterio
from rasterio.errors import NotGeoreferencedWarning
from rasterio.warp import transform

from .files import RASTER_SUFFIXES

#: Longitude and latitude.
CRS = 'EPSG:4326'


def build_catalog(
    paths: Iterable[Path], columns: Mapping[str, Sequence[Any]], polygons: Sequence[str | None] | None = None
) -> gpd.GeoDataFrame:
    """Build a catalog of images.

    Args:
        paths: Image files.
        columns: Further columns by name, each with one value per image.
        polygons: Footprints as well-known text in longitude and latitude, where a list states them.

    Returns:
        One row per image with its path as text, the columns, and its footprint as geometry in longitude
        and latitude; empty where none is known. `catalog.to_file('tiles.gpkg')` makes it a layer.
    """
    paths = list(paths)
    stated = polygons if polygons is not None else [None] * len(paths)
    texts = [
        text if isinstance(text, str) else footprint(path) for path, text in zip(paths, stated, strict=True)
    ]
    geometry = gpd.GeoSeries.from_wkt(texts, on_invalid='ignore', crs=CRS)
    table = {'path': [str(path) for path in paths], **columns}
    return gpd.GeoDataFrame(table, geometry=geometry)


def footprint(path: Path) -> str | None:
    """The footprint of an image in longitude and latitude, as well-known text.

    It is read from the header of a raster, or from the ``raw_location`` of fMoW's JSON file beside an
    image of the same name.

    Args:
        path: Image file.

    Returns:
        Footprint, or None if the files do not tell.
    """
    if path.suffix.lower() in RASTER_SUFFIXES:
        return _raster_footprint(path)
    beside = path.with_suffix('.json')
    if not beside.is_file():
        return None
    try:
        content = json.loads(beside.read_text(encoding='utf-8'))
    except ValueError:
        return None
    text = content.get('raw_location') if isinstance(content, dict) else None
    return text if isinstance(text, str) else None


def _raster_footprint(path: Path) -> str | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            with rasterio.open(path) as source:
                if source.crs is None:
                    return None
                west, south, east, north = source.bounds
                ring = [west, east, east, west, west], [south, south, north, north, south]
                longitudes, latitudes = transform(source.crs, CRS, *ring)
    except Exception:  # GDAL has no public class for coordinates that lead to no longitude and latitude
        return None
    points = ', '.join(f'{x} {y}' for x, y in zip(longitudes, latitudes, strict=True))
    return f'POLYGON (({points}))'
