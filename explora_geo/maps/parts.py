"""Finished blocks on disk, from which an interrupted map goes on, and the raster they make."""

import hashlib
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio import Affine
from rasterio.errors import RasterioError
from rasterio.shutil import copy as copy_raster
from rasterio.windows import Window

from explora_geo.checkpoints import atomic_path
from explora_geo.maps.grid import Box, TileGrid


def parts_folder(out: Path) -> Path:
    """Where the finished blocks of an output are kept."""
    return out.with_name(f'.{out.name}.parts')


class Parts:
    """Folder of finished blocks beside the output; it belongs to one model, scene and setting."""

    def __init__(self, out: Path, setting: Mapping[str, Any]) -> None:
        """Open, or make, the folder of parts of an output.

        Args:
            out: The output file.
            setting: What the blocks depend on; parts of another setting are discarded.
        """
        self.folder = parts_folder(out)
        key = hashlib.sha256(json.dumps(setting, sort_keys=True, default=str).encode()).hexdigest()
        stated = self.folder / 'setting'
        if self.folder.is_dir() and (not stated.is_file() or stated.read_text() != key):
            shutil.rmtree(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(stated) as temporary:
            temporary.write_text(key)

    def file(self, number: int) -> Path:
        """File of a block."""
        return self.folder / f'{number:06d}.npz'

    def done(self, number: int) -> bool:
        """Whether a block is finished."""
        return self.file(number).is_file()

    def write(self, number: int, **arrays: NDArray[Any]) -> None:
        """Keep a finished block, in one piece or not at all."""
        with atomic_path(self.file(number)) as temporary, temporary.open('wb') as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]

    def read(self, number: int) -> dict[str, NDArray[Any]]:
        """A finished block.

        Raises:
            ValueError: If it is damaged.
        """
        path = self.file(number)
        try:
            with np.load(path) as content:
                return dict(content)
        except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(
                f'{path} is damaged: remove it, and the same command makes this block again'
            ) from error

    def remove(self) -> None:
        """Forget all blocks once the outputs are written."""
        shutil.rmtree(self.folder)


@contextmanager
def finished_raster(path: Path) -> Iterator[Path]:
    """A temporary GeoTIFF that becomes a Cloud-Optimized one when the block ends without an error.

    Args:
        path: File to write.

    Raises:
        OSError: If the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as folder:
        plain, optimised = Path(folder) / 'plain.tif', Path(folder) / 'optimised.tif'
        try:
            yield plain
            # Classes must not be averaged in overviews; what can be averaged is float here.
            with rasterio.open(plain) as source:
                categories = source.dtypes[0] == 'uint8'
                # Who reads or writes a pixel unpacks a whole block of all bands.
                size = 512 if source.count <= 16 else 128
            copy_raster(
                plain,
                optimised,
                driver='COG',
                compress='deflate',
                blocksize=size,
                overview_resampling='mode' if categories else 'average',
                predictor='no' if categories else 'yes',
                bigtiff='if_safer',
            )
        except RasterioError as error:
            if shutil.disk_usage(path.parent).free < 1e7:
                raise OSError(f'No space left on the device of {path}') from error
            raise ValueError(f'{path} cannot be written ({error})') from error
        os.replace(optimised, path)


def assemble(
    path: Path,
    parts: Parts,
    grid: TileGrid,
    key: str,
    profile: Mapping[str, Any],
    cell: int = 1,
    shape: tuple[int, int] | None = None,
    colours: Sequence[Sequence[int]] = (),
    names: Sequence[str] = (),
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write a Cloud-Optimized GeoTIFF from finished blocks, one block in memory at a time.

    Args:
        path: File to write.
        parts: Finished blocks.
        grid: Their grid.
        key: Which of their arrays, shape (K, h, w).
        profile: `crs`, `transform` (of pixels), `dtype`, `count` and `nodata`.
        cell: Pixels along the side of a cell.
        shape: Cells along height and width; those of the grid if None.
        colours: Colour of each class, for one band of classes.
        names: Description of each band.
        tags: Text entries of the file.
    """
    height, width = shape or (grid.height // cell, grid.width // cell)
    t = profile['transform']
    transform = Affine(t.a * cell, t.b * cell, t.c, t.d * cell, t.e * cell, t.f)
    with finished_raster(path) as plain:
        settings = {**profile, 'transform': transform, 'height': height, 'width': width}
        with rasterio.open(
            plain,
            'w',
            driver='GTiff',
            tiled=True,
            interleave='band',  # GDAL's cache then holds blocks of single bands
            compress='deflate',
            bigtiff='if_safer',
            **settings,
        ) as target:
            for number, block in enumerate(grid.blocks()):
                inside = Box(*(v // cell for v in block))
                window = Window(inside.left, inside.top, inside.shape[1], inside.shape[0])
                target.write(parts.read(number)[key], window=window)
            if len(colours):
                target.write_colormap(1, {i: (*map(int, c), 255) for i, c in enumerate(colours)})
            for i, name in enumerate(names, start=1):
                target.set_band_description(i, name)
            target.update_tags(**(tags or {}))
