"""Functional Map of the World: RGB images, Sentinel-2 tiles, and series of RGB images."""

import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError

from .base import TileDataset, Transforms
from .catalog import build_catalog
from .files import PathLike
from .fmow_lists import CLASSES, read_list, rgb_rows, sentinel_rows
from .images import BadTileError, resize

#: Bands of fMoW-Sentinel's files in their order: B8A stands after B08, unlike in EuroSAT's files.
SENTINEL_BANDS = (*(f'B{i:02d}' for i in range(1, 9)), 'B8A', *(f'B{i:02d}' for i in range(9, 13)))
#: The first year that SatMAE's timestamps count from.
FIRST_YEAR = 2002


class FMoWRGB(TileDataset):
    """Functional Map of the World in RGB: 62 classes of places.

    The layout is ``root/<split>_62classes.csv``, rows of label, image path relative to *root* and
    timestamp, beside the images. The data cannot be downloaded here: see
    https://github.com/fMoW/dataset, and the lists of SatMAE and ExPLoRA.

    Rows without a file are left out and counted in :attr:`missing`. An image that cannot be used is
    returned as ``{'skipped': '<path>: <reason>'}``. Both raise if *strict*.

    If you use this dataset in your research, please cite https://arxiv.org/abs/1711.07846.

    Attributes:
        table: One row per image: path, label, location_id, image_id, timestamp and series.
        missing: Files that the list names and that do not exist.
    """

    labels: list[int]

    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        bands: Sequence[str] | None = None,
        size: int | None = 224,
        crop_pct: float = 1.0,
        strict: bool = False,
        checksum: str | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        """Initialize a new dataset instance.

        Args:
            root: Folder of the lists.
            split: Which list: train, val or test.
            bands: Names of the bands to return, in any order; all bands if None.
            size: Side of the returned images, which differ in size: the shorter side is resized and the
                center cropped. Images keep their size if None.
            crop_pct: Share of the resized side that is kept; SatMAE evaluates with 224/256.
            strict: Whether to raise on missing and unusable images instead of leaving them out.
            checksum: SHA-256 that the list must have.
            transforms: Function applied to each sample.

        Raises:
            DatasetNotFoundError: If there is no list, or none of its files.
            ValueError: If the list or an argument does not fit, or *strict* and files are missing.
        """
        if not 0 < crop_pct <= 1:
            raise ValueError(f'crop_pct must be above 0 and at most 1, got {crop_pct}.')
        self.root, self.split, self.crop_pct, self.strict = Path(root), split, crop_pct, strict
        path = self._list_path()
        if not path.is_file():
            raise DatasetNotFoundError(self)
        rows = self._rows(read_list(path, checksum), path)
        exists = np.array([file.is_file() for file in rows['path']])
        self.missing = [str(file) for file in rows['path'][~exists]]
        self._report_missing(len(rows), path)
        self.table: pd.DataFrame = rows[exists].reset_index(drop=True)
        files, labels = list(self.table['path']), self.table['label'].tolist()
        super().__init__(root, files, labels, CLASSES, bands, size, strict, transforms)

    @cached_property
    def catalog(self) -> gpd.GeoDataFrame:
        """One row per image with its footprint in longitude and latitude, for QGIS and geopandas."""
        columns = {name: list(self.table[name]) for name in ('location_id', 'image_id', 'timestamp', 'label')}
        columns['category'] = [CLASSES[label] for label in self.table['label']]
        polygons = list(self.table['polygon']) if 'polygon' in self.table else None
        return build_catalog(self.table['path'], columns, polygons)

    def _list_path(self) -> Path:
        return self.root / f'{self.split}_62classes.csv'

    def _rows(self, table: pd.DataFrame, where: Path) -> pd.DataFrame:
        return rgb_rows(table, self.root, where)

    def _report_missing(self, total: int, path: Path) -> None:
        if not self.missing:
            return
        if len(self.missing) == total:
            raise DatasetNotFoundError(self)
        message = f'{len(self.missing)} of {total} files in {path} do not exist, first {self.missing[0]}'
        if self.strict:
            raise ValueError(f'{message}; get them, or set strict=False to leave them out.')
        warnings.warn(f'{message}; they are left out.', UserWarning, stacklevel=3)

    def _resize(self, pixels: NDArray[Any]) -> NDArray[Any]:
        if self.size is None:
            return pixels
        pixels = resize(pixels, int(self.size / self.crop_pct))
        margin = (pixels.shape[1] - self.size) // 2
        return pixels[:, margin : margin + self.size, margin : margin + self.size]


class FMoWSentinel(FMoWRGB):
    """Sentinel-2 tiles of the places of Functional Map of the World, 13 bands.

    The layout is ``root/train.csv`` and ``root/val.csv`` with the columns ``category, location_id,
    image_id, timestamp``, and ``root/fmow-sentinel/<split>/<category>/<category>_<location_id>/
    <category>_<location_id>_<image_id>.tif``. Get it from https://purl.stanford.edu/vg497cb6002, whose
    terms are to be accepted first.

    Bands have the order B01 to B08, B8A, B09 to B12 in the files, unlike EuroSAT's: choose them by name.
    Some published files hold one empty band: they are skipped as unusable.

    If you use this dataset in your research, please cite https://arxiv.org/abs/2207.08051.
    """

    file_bands = SENTINEL_BANDS
    dtype = None

    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        bands: Sequence[str] | None = None,
        size: int | None = 96,
        **kwargs: Any,
    ) -> None:
        """Initialize a new dataset instance; see :class:`FMoWRGB` for the arguments."""
        super().__init__(root, split, bands, size, **kwargs)

    def _list_path(self) -> Path:
        return self.root / f'{self.split}.csv'

    def _rows(self, table: pd.DataFrame, where: Path) -> pd.DataFrame:
        return sentinel_rows(table, self.root, self.split, where)


class FMoWTemporal(FMoWRGB):
    """Series of RGB images of one place each, as SatMAE reads them.

    The layout is that of :class:`FMoWRGB`; the list must have timestamps. A sample is an image and
    others of the same place, drawn at random; a place with too few images repeats them.
    """

    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        num_frames: int = 3,
        random_frames: bool = True,
        bands: Sequence[str] | None = None,
        size: int = 224,
        crop_pct: float = 1.0,
        strict: bool = False,
        checksum: str | None = None,
        transforms: Transforms | None = None,
    ) -> None:
        """Initialize a new dataset instance.

        Args:
            root: Folder of the lists.
            split: Which list: train, val or test.
            num_frames: Images of a series T.
            random_frames: Whether to draw the other images anew each time; else always the same.
            bands: Names of the bands to return, in any order; all bands if None.
            size: Side of the returned images; see :class:`FMoWRGB`.
            crop_pct: Share of the resized side that is kept.
            strict: Whether to raise on missing and unusable images instead of leaving them out.
            checksum: SHA-256 that the list must have.
            transforms: Function applied to each sample.

        Raises:
            DatasetNotFoundError: If there is no list, or none of its files.
            ValueError: If the list has no timestamps, or an argument does not fit.
        """
        if num_frames < 1:
            raise ValueError(f'num_frames must be at least 1, got {num_frames}.')
        self.num_frames = num_frames
        self.random_frames = random_frames
        super().__init__(root, split, bands, size, crop_pct, strict, checksum, transforms)
        self.times = _parse_times(self.table['timestamp'], self._list_path())
        groups = self.table.groupby('series').indices
        self._others = [groups[name][groups[name] != i] for i, name in enumerate(self.table['series'])]

    def _sample(self, index: int) -> dict[str, Any]:
        """One series, whose first image is the row asked for.

        ``image`` has the shape (T, C, H, W), ``timestamps``, int64 years since 2002, months since January and
        hours, the shape (T, 3).
        """
        rows = [index, *self._draw(index)]
        frames: dict[int, Tensor] = {}
        for row in dict.fromkeys(rows):
            try:
                frames[row] = torch.from_numpy(self._load(row).astype(np.float32))
            except BadTileError as error:
                error.path = self.files[row]
                raise
        return {
            'image': torch.stack([frames[row] for row in rows]),
            'timestamps': self.times[rows],
            'label': torch.tensor(self.labels[index]),
        }

    def _draw(self, index: int) -> list[int]:
        """Rows of the other frames: all different while there are enough, else repeated."""
        wanted, others = self.num_frames - 1, self._others[index]
        if not len(others):
            return [index] * wanted
        order = torch.randperm(len(others)) if self.random_frames else torch.arange(len(others))
        return [int(others[order[i % len(others)]]) for i in range(wanted)]


def _parse_times(stamps: pd.Series, where: Path) -> Tensor:
    """Years since 2002, months since January and hours of ISO times, shape (N, 3)."""
    times = pd.to_datetime(stamps, utc=True, errors='coerce', format='ISO8601')
    if times.isna().any():
        first = stamps[times.isna()].iloc[0]
        raise ValueError(
            f'The list {where} must state the time of every image, such as 2016-05-03T10:24:00Z, in its '
            f'third column, got {first!r}.'
        )
    columns = [times.dt.year - FIRST_YEAR, times.dt.month - 1, times.dt.hour]
    return torch.tensor(np.stack(columns, axis=1), dtype=torch.int64)
