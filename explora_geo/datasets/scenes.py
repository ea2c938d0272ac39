"""Whole georeferenced scenes, read window by window through TorchGeo."""

import os
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import torch
from matplotlib.figure import Figure
from pyproj import CRS
from rasterio.errors import NodataShadowWarning, RasterioError
from torchgeo.datasets import RasterDataset
from torchgeo.datasets.utils import GeoSlice

from explora_geo.bands import name_bands, same_bands, select_bands
from explora_geo.datasets.base import CATALOG_CRS, skip
from explora_geo.datasets.files import RASTER_SUFFIXES, find_images
from explora_geo.datasets.images import (
    BadTileError,
    Header,
    depth,
    fill_nodata,
    raise_machine_failure,
    read_header,
)
from explora_geo.datasets.plotting import plot_sample
from explora_geo.datasets.remote import PathLike, locate, read_apart, remote_options

#: A date such as 20170827 or 2017-08-27 that is not part of a longer number.
DATE = re.compile(r'(?<!\d)((?:19|20)\d\d)[-_]?(0[1-9]|1[0-2])[-_]?(0[1-9]|[12]\d|3[01])(?!\d)', re.ASCII)


class SceneDataset(RasterDataset):
    """Georeferenced scenes of any size, indexed by place and time.

    Each scene has its own time, so that an earlier image does not hide a later one of the same
    place: the day in its file name, or else a unique instant. Nodata pixels, and pixels beyond the
    edge of a scene, take the mean of the window's valid pixels; beyond the edge of a scene that
    declares no nodata value they are 0.

    A window that holds only nodata, has other NaN or infinite pixels, or cannot be read is returned as
    ``{'skipped': '<place>: <reason>'}``, or raises ValueError if *strict*. A scene that is not a file on
    disk raises an error if it cannot be read, because a failing server or network is not damage.
    """

    def __init__(
        self,
        paths: PathLike | Iterable[PathLike],
        bands: Sequence[str] | None = None,
        file_bands: Sequence[str] | None = None,
        crs: CRS | None = None,
        res: float | tuple[float, float] | None = None,
        strict: bool = False,
        cache: bool = False,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        """Initialize a new SceneDataset instance.

        Args:
            paths: Folders to search, files to load, or anything GDAL opens: `https://...`, `/vsicurl/...`,
                `s3://...`, `/vsizip/...`.
            bands: Names of the bands to return, in any order; all bands if None.
            file_bands: Names of all bands in file order, e.g. ``('red', 'green', 'blue', 'nir')``.
                Defaults to the band descriptions stored in the files, or to red, green and blue for
                8-bit scenes with three bands.
            crs: Coordinate reference system to warp to; that of the first scene if None.
            res: Pixel size in units of *crs*; that of the first scene if None.
            strict: Whether to raise on an unusable scene instead of leaving it out.
            cache: Whether to keep files open between windows. Leave it off in a process that
                forks workers afterwards, as open files must not be shared.
            transforms: Function applied to each sample.

        Raises:
            FileNotFoundError: If a path does not exist, or no scene is usable.
            ValueError: If the band names do not match, or a scene is unusable and *strict* is set.
        """
        self.strict = strict
        usable: dict[str, Header] = {}
        names: tuple[str, ...] = ()
        for path in _find_scenes(paths):
            try:
                with remote_options():
                    header = read_header(path)
                if not usable and header.crs is not None:
                    names = name_bands(header.count, header.dtype, header.descriptions, file_bands, str(path))
                _check(header, names, next(iter(usable.values()), header), file_bands is None)
            except BadTileError as error:
                if strict:
                    raise ValueError(f'{path}: {error}; repair it, or set strict=False to skip it') from error
                warnings.warn(f'Skipping {path}: {error}', UserWarning, stacklevel=2)
            else:
                usable[str(path)] = header
        if not usable:
            raise FileNotFoundError(
                f'no usable georeferenced scenes in {paths}; check the path, or use FolderDataset for '
                'images without coordinates'
            )
        self.all_bands = names
        chosen = tuple(names[i] for i in select_bands(bands, names))
        self._headers = usable
        with remote_options():
            super().__init__([header.path for header in usable.values()], crs, res, chosen, None, cache)
        # Not passed to the base class, which would apply them before windows are checked.
        self._sample_transforms = transforms
        self.bands: tuple[str, ...] = chosen
        self.index.index = _intervals(self.index['filepath'])
        kinds = {(type(header.path), header.nodata) for header in usable.values()}
        #: One scene to stand for all, if all are local files with the same nodata value.
        self._alike = self.files[:1] if len(kinds) == 1 and not self._remote(usable) else []

    @property
    def files(self) -> list[str]:
        """Paths of the scenes in use; TorchGeo would look for them on disk and miss URLs."""
        return sorted(self._headers)

    def __getitem__(self, query: GeoSlice) -> dict[str, Any]:
        """Return one window.

        Args:
            query: [xmin:xmax:xres, ymin:ymax:yres, tmin:tmax:tres] to read.

        Returns:
            ``image``, float32 in the file's own units, shape (C, H, W), and ``bounds``, float64
            in units of :attr:`crs` as (xmin, ymin, xmax, ymax), shape (4,); or ``skipped``.

        Raises:
            IndexError: If no scene covers the window.
            ValueError: If the window cannot be used and *strict* is set.
            ConnectionError: If a scene that is not a file on disk cannot be read.
        """
        x, y, _ = self._disambiguate_slice(query)
        files = self._files_at(query)
        remote = self._remote(files)
        try:
            try:
                image = read_apart(self._read, query) if remote else self._read(query)
            except RasterioError as error:
                raise_machine_failure(error)
                if remote:
                    raise ConnectionError(
                        f'{remote[0]} cannot be read ({error.__cause__ or error})'
                    ) from error
                raise BadTileError(f'cannot be read ({error})') from error
            for nodata in {self._headers[file].nodata for file in files}:
                image = torch.from_numpy(fill_nodata(image.numpy(), nodata))
            if not torch.isfinite(image).all():
                raise BadTileError('has NaN or infinite pixels')
        except BadTileError as error:
            message = f'window x {x.start}:{x.stop}, y {y.start}:{y.stop}: {error}'
            return skip(message, self.strict, 'repair the scene')
        bounds = torch.tensor([x.start, y.start, x.stop, y.stop], dtype=torch.float64)
        # TorchGeo's other keys differ between its versions, and not all of them can be stacked.
        sample: dict[str, Any] = {'image': image, 'bounds': bounds}
        return sample if self._sample_transforms is None else self._sample_transforms(sample)

    @property
    def catalog(self) -> gpd.GeoDataFrame:
        """One row per scene with its time and footprint in longitude and latitude."""
        times = self.index.index
        columns = {'path': list(self.index['filepath']), 'start': times.left, 'end': times.right}
        return gpd.GeoDataFrame(columns, geometry=list(self.index.geometry), crs=self.crs).to_crs(CATALOG_CRS)

    def plot(self, sample: dict[str, Any], show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a window; see :func:`~explora_geo.datasets.plotting.plot_sample`."""
        return plot_sample(sample, self.bands, (), (), show_titles, suptitle)

    def _read(self, query: GeoSlice) -> torch.Tensor:
        with warnings.catch_warnings(), remote_options():
            # Many four-band files tag near infrared as alpha, which nodata overrides.
            warnings.simplefilter('ignore', NodataShadowWarning)
            image: torch.Tensor = super().__getitem__(query)['image']
        return image

    def _files_at(self, query: GeoSlice) -> list[str]:
        """List the scenes of a window, or one to stand for all if they are alike."""
        if self._alike:
            return self._alike
        x, y, t = self._disambiguate_slice(query)
        scenes = self.index.iloc[self.index.index.overlaps(pd.Interval(t.start, t.stop))]
        return list(map(str, scenes.cx[x.start : x.stop, y.start : y.stop]['filepath']))

    def _remote(self, files: Iterable[str]) -> list[str]:
        """List the scenes that are not files on disk."""
        return [file for file in files if isinstance(self._headers[file].path, str)]


def _check(header: Header, names: Sequence[str], first: Header, by_name: bool) -> None:
    """Raise BadTileError if a scene has no CRS, or differs from the first in bands or kind of pixels."""
    if header.crs is None:
        raise BadTileError('has no coordinate reference system')
    header.check_count(names)
    if by_name and all(header.descriptions) and not same_bands(header.descriptions, names):
        raise BadTileError(f'has the bands {header.descriptions}, expected {names} in this order')
    if depth(header.dtype) != depth(first.dtype):
        raise BadTileError(
            f'has {header.dtype} pixels, but the scenes before it have {depth(first.dtype)} pixels'
        )


def _find_scenes(paths: PathLike | Iterable[PathLike]) -> list[Path | str]:
    """List raster files in folders; keep files and names for GDAL as given; drop duplicates."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: set[Path | str] = set()
    for path in map(locate, given):
        single = isinstance(path, str) or path.is_file()
        found.update([path] if single else find_images(path, RASTER_SUFFIXES))
    return sorted(found, key=str)


def _intervals(files: Iterable[str]) -> pd.IntervalIndex:
    """Assign each scene its day, or a unique instant if its name has no valid date."""
    intervals = []
    for number, file in enumerate(files):
        match = DATE.search(os.path.basename(file))
        day = pd.to_datetime('-'.join(match.groups()), errors='coerce') if match else pd.NaT
        if pd.isna(day):
            instant = pd.Timestamp(0) + pd.Timedelta(seconds=number)
            # Not of zero length, as TorchGeo queries intervals without their left end.
            intervals.append((instant, instant + pd.Timedelta(milliseconds=500)))
        else:
            intervals.append((day, day + pd.Timedelta(days=1) - pd.Timedelta(microseconds=1)))
    return pd.IntervalIndex.from_tuples(intervals, closed='both', name='datetime')
