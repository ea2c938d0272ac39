"""A scene, on disk or anywhere GDAL can read, accessed by windows."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from pyproj import Transformer
from pyproj.exceptions import ProjError
from rasterio.enums import MaskFlags
from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from explora_geo.bands import name_bands, select_bands
from explora_geo.datasets.remote import identify, locate, remote_options, short_name
from explora_geo.maps.grid import Box
from explora_geo.models.normalization import Normalization

#: Global equal-area projection in meters (EASE-Grid 2.0).
EQUAL_AREA = 'EPSG:6933'


class UnreadableError(ValueError):
    """Error for a scene, or a window of it, that GDAL cannot read."""


class Scene:
    """Georeferenced raster with bands selected by name.

    Attributes:
        path: File, or GDAL's name for it as text, such as a URL; `name` is its last part.
        height, width: Size, pixels.
        crs, transform: Coordinate reference system, and transform from pixels to its coordinates.
        bands: Names of the bands that `read` returns; `indices` are their positions in the file, from 1.
        identity: JSON-ready facts that reveal a changed scene; `changed` is None if nothing does.
    """

    def __init__(
        self, path: str | Path, bands: Sequence[str] | None = None, file_bands: Sequence[str] | None = None
    ) -> None:
        """Open a scene.

        Args:
            path: Raster file, or anything GDAL opens: `https://...`, `/vsicurl/...`, `s3://...`,
                `/vsizip/...`.
            bands: Names of the bands to read, in order; all if None.
            file_bands: Names of all bands in file order, if the file does not state them.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the scene cannot be read, has no coordinate reference system, or lacks a band.
        """
        self.path = locate(path)
        self.name = short_name(self.path)
        if isinstance(self.path, Path) and not self.path.is_file():
            raise FileNotFoundError(f'scene not found: {self.path}')
        with self.open() as source:
            self.height, self.width = source.height, source.width
            self.crs, self.transform = source.crs, source.transform
            stated = source.count, source.dtypes[0], source.descriptions
        names = name_bands(*stated, file_bands, str(self.path))
        if self.crs is None:
            raise ValueError(
                f'{self.path} has no coordinate reference system, so its map has no location: assign one, '
                f'for example with rio edit-info --crs EPSG:32631 {self.name}'
            )
        try:
            self.indices = [i + 1 for i in select_bands(bands, names)]
        except ValueError as error:
            raise ValueError(
                f'the model reads the bands {", ".join(bands or ())}, but {self.name} has '
                f'{", ".join(names)}: use a scene with these bands, or name its bands in file order with '
                '--file-bands'
            ) from error
        self.bands = tuple(names[i - 1] for i in self.indices)
        self.identity = identify(self.path)

    @contextmanager
    def open(self) -> Iterator[rasterio.DatasetReader]:
        """Open the file for reading; each process must open its own."""
        with warnings.catch_warnings(), self._named():
            warnings.simplefilter('ignore', NotGeoreferencedWarning)
            # Many four-band files tag near infrared as alpha, which nodata overrides.
            warnings.simplefilter('ignore', NodataShadowWarning)
            with remote_options(), rasterio.open(self.path) as source:
                yield source

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Turn GDAL's errors into one sentence."""
        try:
            yield
        except RasterioError as error:
            # rasterio hides the reason behind "see previous exception".
            reason = error.__cause__ or error
            what = 'it' if isinstance(self.path, Path) else 'the address is wrong, the server failed, or it'
            raise UnreadableError(
                f'{self.path} cannot be read ({reason}): {what} is damaged or not a raster'
            ) from error

    def read(
        self, source: rasterio.DatasetReader, box: Box, shape: tuple[int, int] | None = None
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Read a window, resampled to a height and width if given.

        Returns:
            Pixels in units of the file, shape (C, H, W), and their valid-data mask, shape (H, W): pixels are
            valid if the file's mask, if any, agrees, some band differs from nodata and all are finite.

        Raises:
            UnreadableError: If the file is damaged there.
        """
        window = Window(box.left, box.top, box.shape[1], box.shape[0])
        height, width = shape or box.shape
        with self._named():
            pixels = source.read(self.indices, window=window, out_shape=(len(self.indices), height, width))
            valid = np.isfinite(pixels).all(0)
            flags = source.mask_flag_enums[self.indices[0] - 1]
            if MaskFlags.per_dataset in flags and MaskFlags.alpha not in flags:  # see above
                valid &= source.dataset_mask(window=window, out_shape=(height, width)) > 0
        if source.nodata is not None and np.isfinite(source.nodata):
            # In all bands: one dark band does not make a pixel nodata.
            valid &= ~(pixels == source.nodata).all(0)
        return pixels.astype(np.float32), valid

    def check_areas(self) -> None:
        """Check that areas in square meters can be computed.

        Raises:
            ValueError: If the coordinate reference system has no place on Earth.
        """
        try:
            to_earth = Transformer.from_crs(self.crs.to_wkt(), EQUAL_AREA, always_xy=True)
            placed = bool(np.isfinite(to_earth.transform(self.transform.c, self.transform.f)).all())
        except ProjError:
            placed = False
        if not placed:
            raise ValueError(
                f'{self.path} has a coordinate reference system without a location on Earth '
                f'({self.crs.to_string()[:60]}): assign the right one to make polygons'
            )

    def statistics(self, clip: bool = False) -> Normalization:
        """Compute the normalization of each band from 64 evenly spaced windows of 256 pixels.

        Args:
            clip: Whether to clip results, as SatMAE does, to two standard deviations below and above the
                mean.

        Raises:
            ValueError: If no window has data.
        """
        size = min(256, self.height, self.width)
        tops, lefts = (
            np.unique(np.linspace(0, n - size, 8).astype(int)).tolist() for n in (self.height, self.width)
        )
        count, sums = 0, np.zeros((2, len(self.bands)))
        with self.open() as source:
            for top, left in product(tops, lefts):
                pixels, valid = self.read(source, Box(top, left, top + size, left + size))
                data = pixels[:, valid].astype(np.float64)
                count += data.shape[1]
                sums += data.sum(1), (data**2).sum(1)
        if not count:
            raise ValueError(f'{self.path} contains only nodata in the sampled windows')
        mean, square = sums / count
        std = np.sqrt(np.maximum(square - mean**2, 0))
        std = np.where(std > 0, std, 1)
        start, length = (mean - 2 * std, 4 * std) if clip else (mean, std)
        return Normalization(tuple(start.tolist()), tuple(length.tolist()), clip)
