"""Functional Map of the World: RGB images, Sentinel-2 tiles, and series of RGB images."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torchgeo.datasets import DatasetNotFoundError

from explora_geo.datasets.base import TileDataset
from explora_geo.datasets.images import BadTileError
from explora_geo.datasets.remote import PathLike

#: Bands of fMoW-Sentinel in file order: B8A follows B08, unlike in EuroSAT.
SENTINEL_BANDS = (*(f'B{i:02d}' for i in range(1, 9)), 'B8A', *(f'B{i:02d}' for i in range(9, 13)))
#: First year of SatMAE's timestamps.
FIRST_YEAR = 2002

CLASSES = tuple(
    """
    airport airport_hangar airport_terminal amusement_park aquaculture archaeological_site barn
    border_checkpoint burial_site car_dealership construction_site crop_field dam debris_or_rubble
    educational_institution electric_substation factory_or_powerplant fire_station flooded_road fountain
    gas_station golf_course ground_transportation_station helipad hospital impoverished_settlement
    interchange lake_or_pond lighthouse military_facility multi-unit_residential nuclear_powerplant
    office_building oil_or_gas_facility park parking_lot_or_garage place_of_worship police_station port
    prison race_track railway_bridge recreational_facility road_bridge runway shipyard shopping_mall
    single-unit_residential smokestack solar_farm space_facility stadium storage_tank surface_mine
    swimming_pool toll_booth tower tunnel_opening waste_disposal water_treatment_facility wind_farm zoo
    """.split()
)
# airport_hangar_12_3_rgb.jpg: category, location, image and the kind of file.
_NAME = re.compile(r'(?P<category>.+)_(?P<location>-?\d+)_(?P<image>\d+)(?P<kind>\D.*)?')


class FMoWRGB(TileDataset):
    """Functional Map of the World in RGB: 62 classes of places.

    The layout is ``root/<split>_62classes.csv``, with columns for label, image path relative to *root*
    and timestamp, beside the images. The data is not downloaded: get it from
    https://github.com/fMoW/dataset, and the lists from SatMAE or ExPLoRA.

    Rows without a file are left out and listed in :attr:`missing`. An unusable image is returned as
    ``{'skipped': '<path>: <reason>'}``. Both raise an error if *strict*.

    If you use this dataset in your research, please cite https://arxiv.org/abs/1711.07846.

    Attributes:
        table: One row per image: path, label, location_id, image_id, timestamp and series, shared by images
            of one place and kind of file.
        missing: Listed files that do not exist.
    """

    labels: list[int]
    list_name = '{}_62classes.csv'

    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        bands: Sequence[str] | None = None,
        size: int | None = 224,
        crop_pct: float = 1.0,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new dataset instance.

        Args:
            root: Folder of the lists.
            split: List to read: train, val or test.
            bands: Names of the bands to return, in any order; all bands if None.
            size: Side of the returned images, pixels; None keeps their own sizes, which differ.
            crop_pct: Share of the resized side to keep; SatMAE evaluates with 224/256.
            strict: Whether to raise on missing and unusable images instead of leaving them out.
            **kwargs: ``transforms``, ``min_size`` and ``cache`` of :class:`TileDataset`.

        Raises:
            DatasetNotFoundError: If the list or all of its files are missing.
            ValueError: If the list or an argument is invalid, or files are missing and *strict* is set.
        """
        if not 0 < crop_pct <= 1:
            raise ValueError(f'crop_pct must be above 0 and at most 1, got {crop_pct}')
        self.root, self.split, self.crop_pct = Path(root), split, crop_pct
        self.list_path = path = self.root / self.list_name.format(split)
        if not path.is_file():
            raise DatasetNotFoundError(self)
        try:
            table = pd.read_csv(path)
        except (ValueError, UnicodeDecodeError) as error:
            raise ValueError(f'the list {path} is not a valid CSV file ({error})') from error
        if table.empty:
            raise ValueError(f'the list {path} is empty; download the complete list')
        rows = self._rows(table)
        exists = np.array([file.is_file() for file in rows['path']])
        self.missing = [str(file) for file in rows['path'][~exists]]
        if not exists.any():
            raise DatasetNotFoundError(self)
        if self.missing:
            message = (
                f'{len(self.missing)} of {len(rows)} files listed in {path} do not exist '
                f'(first: {self.missing[0]})'
            )
            if strict:
                raise ValueError(f'{message}; download them, or set strict=False to skip them')
            warnings.warn(f'{message}; skipping them', UserWarning, stacklevel=2)
        self.table: pd.DataFrame = rows[exists].reset_index(drop=True)
        files, labels = list(self.table['path']), self.table['label'].tolist()
        super().__init__(root, files, labels, CLASSES, bands, size, strict, **kwargs)

    def _columns(self) -> dict[str, Any]:
        names = ('location_id', 'image_id', 'timestamp')
        return {**super()._columns(), **{name: list(self.table[name]) for name in names}}

    def _rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """Build the table from label, path and, if present, timestamp, the first columns of the list."""
        if table.shape[1] < 2:
            raise ValueError(
                f'the list {self.list_path} must have label, path and timestamp, got {list(table.columns)}'
            )
        paths = [self.root / str(path) for path in table.iloc[:, 1]]
        names = [_NAME.fullmatch(path.stem) for path in paths]
        return pd.DataFrame(
            {
                'path': paths,
                'label': self._labels(table.iloc[:, 0]),
                'location_id': [int(m['location']) if m else -1 for m in names],
                'image_id': [int(m['image']) if m else -1 for m in names],
                'timestamp': table.iloc[:, 2].astype(str) if table.shape[1] > 2 else '',
                # The folder is part of the series name: one place in two splits makes two series.
                'series': [
                    f'{path.parent}/{m["category"]}_{m["location"]}{m["kind"] or ""}' if m else str(path)
                    for path, m in zip(paths, names, strict=True)
                ],
            }
        )

    def _labels(self, values: pd.Series) -> list[int]:
        """Return class numbers from class numbers or names."""
        numbers = {name: i for i, name in enumerate(CLASSES)} | {str(i): i for i in range(len(CLASSES))}
        unknown = sorted({str(v) for v in values} - set(numbers))
        if unknown:
            raise ValueError(
                f'the list {self.list_path} contains unknown fMoW classes (first: {unknown[:3]}), expected '
                f'numbers from 0 to {len(CLASSES) - 1} or names from {CLASSES[0]} to {CLASSES[-1]}'
            )
        return [numbers[str(value)] for value in values]


class FMoWSentinel(FMoWRGB):
    """13-band Sentinel-2 tiles of the places in Functional Map of the World.

    The layout is ``root/train.csv`` and ``root/val.csv`` with the columns ``category, location_id,
    image_id, timestamp``, and ``root/fmow-sentinel/<split>/<category>/<category>_<location_id>/
    <category>_<location_id>_<image_id>.tif``. Get it from https://purl.stanford.edu/vg497cb6002 after
    accepting its terms.

    Files order their bands B01 to B08, B8A, B09 to B12, unlike EuroSAT's: choose bands by name.
    Some published files hold a single empty band; they are skipped as unusable.

    If you use this dataset in your research, please cite https://arxiv.org/abs/2207.08051.
    """

    file_bands = SENTINEL_BANDS
    dtype = None
    list_name = '{}.csv'

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

    def _rows(self, table: pd.DataFrame) -> pd.DataFrame:
        # Ignore a column `image_path`: the published one does not name the files.
        needed = ['category', 'location_id', 'image_id', 'timestamp']
        missing = [name for name in needed if name not in table]
        if missing:
            raise ValueError(
                f'the list {self.list_path} is missing the columns {missing}, got {list(table.columns)}'
            )
        rows = table[needed[1:]].copy()
        rows['label'] = self._labels(table['category'])
        rows['series'] = table['category'].astype(str) + '_' + table['location_id'].astype(str)
        files = rows['series'] + '_' + table['image_id'].astype(str) + '.tif'
        folder = self.root / 'fmow-sentinel' / self.split
        places = zip(table['category'], rows['series'], files, strict=True)
        rows['path'] = [folder.joinpath(*parts) for parts in places]
        return rows.sort_values(['label', 'location_id', 'timestamp'], kind='stable', ignore_index=True)


class FMoWTemporal(FMoWRGB):
    """Time series of RGB images, one place each, as SatMAE reads them.

    The layout is that of :class:`FMoWRGB`; the list must have timestamps. A sample is an image and random
    others of the same place; a place with too few images repeats them. ``image`` has shape (T, C, H, W);
    ``timestamps``, int64, shape (T, 3), holds years since 2002, months since January and hours.
    """

    def __init__(
        self,
        root: PathLike = 'data',
        split: str = 'train',
        num_frames: int = 3,
        random_frames: bool = True,
        **kwargs: Any,
    ) -> None:
        """Initialize a new dataset instance.

        Args:
            root: Folder of the lists.
            split: List to read: train, val or test.
            num_frames: Number of images in a series, T.
            random_frames: Whether to draw the other images anew each time, instead of always the same.
            **kwargs: Further arguments of :class:`FMoWRGB`.

        Raises:
            DatasetNotFoundError: If the list or all of its files are missing.
            ValueError: If the list has no timestamps, or an argument is invalid.
        """
        if num_frames < 1:
            raise ValueError(f'num_frames must be at least 1, got {num_frames}')
        self.num_frames, self.random_frames = num_frames, random_frames
        super().__init__(root, split, **kwargs)
        stamps = self.table['timestamp']
        times = pd.to_datetime(stamps, utc=True, errors='coerce', format='ISO8601')
        if times.isna().any():
            raise ValueError(
                f'the third column of {self.list_path} must contain the time of every image, such as '
                f'2016-05-03T10:24:00Z, got {stamps[times.isna()].iloc[0]!r}'
            )
        columns = [times.dt.year - FIRST_YEAR, times.dt.month - 1, times.dt.hour]
        self.times = torch.tensor(np.stack(columns, axis=1), dtype=torch.int64)
        groups = self.table.groupby('series').indices
        self._others = [groups[name][groups[name] != i] for i, name in enumerate(self.table['series'])]

    def _sample(self, index: int) -> dict[str, Any]:
        rows = [index, *self._draw(index)]
        frames: dict[int, Tensor] = {}
        for row in dict.fromkeys(rows):
            try:
                frames[row] = super()._sample(row)['image']
            except BadTileError as error:
                other = '' if row == index else f'frame {self.files[row]}: '
                raise BadTileError(f'{other}{error}') from error
        image, label = torch.stack([frames[row] for row in rows]), torch.tensor(self.labels[index])
        return {'image': image, 'timestamps': self.times[rows], 'label': label}

    def _draw(self, index: int) -> list[int]:
        """Draw the rows of the other frames: all different if there are enough, else repeated."""
        wanted, others = self.num_frames - 1, self._others[index]
        if not len(others):
            return [index] * wanted
        order = torch.randperm(len(others)) if self.random_frames else torch.arange(len(others))
        return [int(others[order[i % len(others)]]) for i in range(wanted)]
