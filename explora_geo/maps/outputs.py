"""Outputs of a map: finished blocks to resume from, and the rasters, polygons and picture made of them."""

import hashlib
import json
import os
import shutil
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pyproj
import rasterio
from matplotlib.patches import Patch
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.errors import RasterioError
from rasterio.features import shapes
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

from explora_geo._atomic import atomic_path, write_text
from explora_geo.bands import true_color_bands
from explora_geo.datasets.plotting import paint
from explora_geo.maps.grid import Box, TileGrid
from explora_geo.maps.scene import EQUAL_AREA, Scene

#: Nodata value of class maps.
NODATA = 255
#: Longer side of a quick-look panel, pixels.
SIDE = 900


def parts_folder(out: Path) -> Path:
    """Return the folder of an output's finished blocks."""
    return out.with_name(f'.{out.name}.parts')


class Parts:
    """Folder of finished blocks beside the output, for one model, scene and setting."""

    def __init__(self, out: Path, setting: Mapping[str, Any]) -> None:
        """Open or create the folder of an output, and discard blocks of another setting."""
        self.folder = parts_folder(out)
        key = hashlib.sha256(json.dumps(setting, sort_keys=True, default=str).encode()).hexdigest()
        stated = self.folder / 'setting'
        if self.folder.is_dir() and (not stated.is_file() or stated.read_text() != key):
            shutil.rmtree(self.folder)
        write_text(stated, key)

    def file(self, number: int) -> Path:
        """Return the file of a block."""
        return self.folder / f'{number:06d}.npz'

    def write(self, number: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Save a finished block atomically."""
        with atomic_path(self.file(number)) as temporary, temporary.open('wb') as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def read(self, number: int, key: str) -> NDArray[Any]:
        """Load an array of a finished block; raise ValueError for a damaged file."""
        path = self.file(number)
        try:
            with np.load(path) as content:
                array: NDArray[Any] = content[key]
                return array
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f'{path} is damaged: remove it and repeat the command to recompute this block'
            ) from error

    def remove(self) -> None:
        """Delete all blocks once the outputs are written."""
        shutil.rmtree(self.folder)


@dataclass(frozen=True)
class Layer:
    """Raster assembled from finished blocks: classes (uint8) if there are colors, else float32."""

    path: Path  # Cloud-Optimized GeoTIFF to write
    count: int  # bands
    names: Sequence[str]  # band descriptions, or empty
    tags: Mapping[str, str]  # metadata of the file
    colors: Sequence[Sequence[int]] = ()  # of the classes

    def finish(self, values: NDArray[np.float32] | None, valid: NDArray[np.bool_]) -> NDArray[Any]:
        """Convert block values, shape (K, h, w), to what the raster stores: the values, or the best class."""
        if self.colors:
            best = np.zeros(valid.shape) if values is None else values.argmax(0)
            return np.where(valid, best, NODATA).astype(np.uint8)[None]
        known = np.zeros((self.count, 1, 1)) if values is None else values
        return np.where(valid, known, np.nan).astype(np.float32)

    def write(self, scene: Scene, grid: TileGrid, parts: Parts, key: str) -> None:
        """Write the raster from the blocks' arrays named `key`, one block in memory at a time.

        Raises:
            OSError: If the disk is full.
            ValueError: If a block is damaged, or the file cannot be written.
        """
        t, cell = scene.transform, grid.cell
        whole = grid.cells(Box(0, 0, grid.height, grid.width))
        profile: dict[str, Any] = {
            'driver': 'GTiff',
            'tiled': True,
            'compress': 'deflate',
            'interleave': 'band',  # GDAL's cache then holds blocks of single bands
            'bigtiff': 'if_safer',
            'count': self.count,
            'height': whole.bottom,
            'width': whole.right,
            'crs': scene.crs,
            'transform': Affine(t.a * cell, t.b * cell, t.c, t.d * cell, t.e * cell, t.f),
            'dtype': 'uint8' if self.colors else 'float32',
            'nodata': NODATA if self.colors else np.nan,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f'.{self.path.name}.', dir=self.path.parent) as folder:
            plain, optimized = Path(folder) / 'plain.tif', Path(folder) / 'optimized.tif'
            try:
                with rasterio.open(plain, 'w', **profile) as target:
                    for number, block in enumerate(map(grid.cells, grid.blocks())):
                        window = Window(block.left, block.top, block.shape[1], block.shape[0])
                        target.write(parts.read(number, key), window=window)
                    if self.colors:
                        target.write_colormap(1, {i: (*c, 255) for i, c in enumerate(self.colors)})
                    for i, name in enumerate(self.names, start=1):
                        target.set_band_description(i, name)
                    target.update_tags(**self.tags)
                copy_raster(
                    plain,
                    optimized,
                    driver='COG',
                    compress='deflate',
                    blocksize=512 if self.count <= 16 else 128,  # reading a pixel loads a block of all bands
                    overview_resampling='mode' if self.colors else 'average',
                    predictor='no' if self.colors else 'yes',
                    bigtiff='if_safer',
                )
            except RasterioError as error:
                if shutil.disk_usage(self.path.parent).free < 1e7:
                    raise OSError(f'no space left to write {self.path}') from error
                raise ValueError(f'{self.path} cannot be written ({error})') from error
            os.replace(optimized, self.path)


def polygonize(
    raster: Path, out: Path, classes: Sequence[str], wanted: Sequence[str] = (), min_area: float = 0.0
) -> None:
    """Write the regions of a class map as polygons with the columns `class`, `name` and `area_m2`.

    Args:
        raster: Class map.
        out: `.gpkg`, `.parquet` or `.geojson` file to write, in the map's coordinates (GeoJSON: longitude
            and latitude).
        classes: Names of the classes.
        wanted: Classes to write; all if empty.
        min_area: Smallest area of a region, square meters.
    """
    kept = {i for i, name in enumerate(classes) if not wanted or name in wanted}
    with rasterio.open(raster) as source:
        # Pass the band, not an array, so that GDAL reads line by line.
        found = [
            {'geometry': place, 'properties': {'class': int(v), 'name': classes[int(v)]}}
            for place, v in shapes(rasterio.band(source, 1))
            if int(v) in kept
        ]
        crs = source.crs.to_wkt()
    frame = gpd.GeoDataFrame.from_features(found, crs, ['geometry', 'class', 'name'])
    frame['area_m2'] = frame.to_crs(EQUAL_AREA).area
    frame = frame[frame['area_m2'] >= min_area].reset_index(drop=True)
    with atomic_path(out) as temporary, warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='The filename extension')
        if out.suffix == '.parquet':
            frame.to_parquet(temporary)
        else:
            driver = 'GPKG' if out.suffix == '.gpkg' else 'GeoJSON'
            placed = frame if driver == 'GPKG' else frame.to_crs('EPSG:4326')
            placed.to_file(temporary, layer=out.stem, driver=driver, engine='pyogrio')


def embedding_points(raster: Path, out: Path, cells: int = 1 << 18) -> None:
    """Write patch features as GeoParquet 1.0, one point per patch with its features as a list.

    Args:
        raster: Features as bands, NaN where missing.
        out: `.parquet` file to write.
        cells: Patches in memory at once, regardless of the size of the scene.
    """
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with rasterio.open(raster) as source, atomic_path(out) as temporary:
        crs = pyproj.CRS.from_wkt(source.crs.to_wkt()).to_json_dict()
        points = {'encoding': 'WKB', 'geometry_types': ['Point'], 'crs': crs}
        stated = {'version': '1.0.0', 'primary_column': 'geometry', 'columns': {'geometry': points}}
        columns = {'embedding': pa.list_(pa.float32()), 'geometry': pa.binary()}
        schema = pa.schema(columns, metadata={'geo': json.dumps(stated)})
        height = max(1, cells // source.width)
        with ParquetWriter(temporary, schema) as writer:
            for top in range(0, source.height, height):
                window = Window(0, top, source.width, min(height, source.height - top))
                values = source.read(window=window)
                row, column = np.nonzero(np.isfinite(values).all(0))
                x, y = rasterio.transform.xy(source.window_transform(window), row, column)
                places = gpd.GeoSeries.from_xy(x, y).to_wkb().tolist()
                features = list(values[:, row, column].T)
                writer.write_table(pa.table({'embedding': features, 'geometry': places}, schema))


def draw(
    path: Path, scene: Scene, raster: Path, classes: Sequence[str], colors: Sequence[Any], title: str
) -> None:
    """Draw a scene beside its map as PNG, with a legend of the classes, if any, ordered by share."""
    scale = min(1.0, SIDE / max(scene.height, scene.width))
    small = max(round(scene.height * scale), 1), max(round(scene.width * scale), 1)
    with scene.open() as source:
        pixels, valid = scene.read(source, Box(0, 0, scene.height, scene.width), small)
    with rasterio.open(raster) as source:
        values = source.read(1, out_shape=small)
    data = pixels[true_color_bands(scene.bands)]
    low, high = np.percentile(data[:, valid], (2, 98)) if valid.any() else (0, 1)
    picture = np.where(valid, np.clip((data - low) / max(high - low, 1e-6), 0, 1), 1).transpose(1, 2, 0)
    figure, axes = plt.subplots(1, 2, figsize=(12, 6.4), layout='constrained')
    axes[0].imshow(picture, interpolation='nearest', cmap='gray')
    if classes:
        table = np.asarray(colors, dtype=np.uint8)
        axes[1].imshow(paint(values, table), interpolation='nearest')
        counts = np.bincount(values[values < len(classes)].ravel(), minlength=len(classes))
        present = [i for i in np.argsort(-counts) if counts[i]][:12]
        entries = [
            Patch(color=table[i] / 255, label=f'{classes[i]} {counts[i] / counts.sum():.0%}') for i in present
        ]
        columns = min(6, max(len(entries), 1))
        figure.legend(handles=entries, loc='outside lower center', ncols=columns, frameon=False)
    else:
        shown = axes[1].imshow(np.ma.masked_invalid(values), cmap='viridis')
        figure.colorbar(shown, ax=axes[1], shrink=0.7)
    for axis in axes:
        axis.axis('off')
    figure.suptitle(title, fontsize=11)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format='png')
    plt.close(figure)
