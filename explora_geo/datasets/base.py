"""Base data set of tiles: bands by name, damaged files skipped, resizing, plots, footprints."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch.utils.data import default_collate
from torchgeo.datasets import NonGeoDataset

from explora_geo.bands import RGB, select_bands
from explora_geo.datasets.files import RASTER_SUFFIXES
from explora_geo.datasets.images import BadTileError, open_raster, read_image, resize
from explora_geo.datasets.plotting import Color, plot_sample
from explora_geo.datasets.remote import PathLike

#: Function applied to each sample.
Transforms = Callable[[dict[str, Any]], dict[str, Any]]
#: Coordinate reference system of catalogs: longitude and latitude.
CATALOG_CRS = 'EPSG:4326'


class TileDataset(NonGeoDataset):
    """Base class of all tile data sets: images by path, in the files' own units.

    An unusable tile is never replaced silently: :meth:`__getitem__` returns
    ``{'skipped': '<path>: <reason>'}``, which :func:`collate_skipping` gathers, or raises ValueError if
    *strict*. Subclasses find the files. Override :meth:`_read` to read other kinds of files, and
    :meth:`_sample` if samples hold more than image and label.
    """

    file_bands: tuple[str, ...] = RGB  # names of the bands in the files
    bands: tuple[str, ...]  # names of the bands of a sample, in order
    colors: Sequence[Color] = ()  # of each class in mask plots: red, green and blue from 0 to 255
    dtype: str | None = 'uint8'  # pixel type of the files, None for any
    crop_pct = 1.0  # share of the resized shorter side to keep
    by_name = False  # whether to read files that name the same bands in another order by name

    def __init__(
        self,
        root: PathLike,
        files: Sequence[Path],
        labels: Sequence[int] | None = None,
        classes: Sequence[str] = (),
        bands: Sequence[str] | None = None,
        size: int | None = None,
        strict: bool = False,
        transforms: Transforms | None = None,
        min_size: int = 1,
        cache: bool = False,
    ) -> None:
        """Initialize a new TileDataset instance.

        Args:
            root: Folder of the data set.
            files: Paths of the images.
            labels: Label of each image, or None.
            classes: Names of the classes.
            bands: Names of the bands to return, in any order; all bands if None.
            size: Side of the returned images, pixels: the shorter side is resized and the center cropped.
                Images keep their size if None.
            strict: Whether to raise on an unusable tile instead of skipping it.
            transforms: Function applied to each sample.
            min_size: Smallest shorter side of a usable image before resizing, pixels.
            cache: Whether to keep decoded tiles in memory, in their own pixel type. Each worker process
                keeps its own.

        Raises:
            FileNotFoundError: If the list is empty.
            ValueError: If a band does not exist, or a label or size is out of range.
        """
        for name, value in (('size', size), ('min_size', min_size)):
            if value is not None and value < 1:
                raise ValueError(f'{name} must be at least 1 pixel, got {value}')
        if not len(files):
            raise FileNotFoundError(f'{root} lists no images for this split; check the split and the path')
        if labels is not None and classes and not 0 <= min(labels) <= max(labels) < len(classes):
            raise ValueError(
                f'labels in {root} must be 0 to {len(classes) - 1}, got {min(labels)} to {max(labels)}'
            )
        self.root, self.files, self.classes = Path(root), list(files), tuple(classes)
        self.labels = None if labels is None else list(labels)
        self.size, self.min_size = size, min_size
        self.strict, self.cache, self.transforms = strict, cache, transforms
        self._positions = select_bands(bands, self.file_bands)
        self.bands = tuple(self.file_bands[i] for i in self._positions)
        self._cached: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        """Return the number of files, whether or not they can be read."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        Returns:
            ``image``, float32 in the file's own units (8-bit: 0 to 255), shape (C, H, W), ``label``, int64,
            shape (), if labeled, and any keys the data set adds; or ``skipped``, with the file and reason.

        Raises:
            IndexError: If the index is out of range.
            ValueError: If the tile cannot be used and *strict* is set.
        """
        index = range(len(self))[index]
        try:
            sample = self._sample(index)
        except BadTileError as error:
            return skip(f'{self.files[index]}: {error}', self.strict)
        return sample if self.transforms is None else self.transforms(sample)

    @cached_property
    def catalog(self) -> gpd.GeoDataFrame:
        """One row per file with its footprint in longitude and latitude, for QGIS and geopandas.

        A footprint is empty if neither the raster's header nor fMoW's JSON file beside the image gives it.
        `catalog.to_file('tiles.gpkg')` writes a layer.
        """
        columns = {'path': list(map(str, self.files)), **self._columns()}
        return gpd.GeoDataFrame(columns, geometry=list(map(footprint, self.files)), crs=CATALOG_CRS)

    def relabel(self, classes: Sequence[str]) -> None:
        """Renumber the labels by another list of classes, e.g. the training folder's.

        Raises:
            ValueError: If a class of this dataset is not in the list.
        """
        if missing := [name for name in self.classes if name not in classes]:
            raise ValueError(
                f'class folders {missing} in {self.root} are not among the classes '
                f'{list(classes)}; rename or remove the folders'
            )
        names = [self.classes[label] for label in self.labels or ()]
        self.labels = None if self.labels is None else [list(classes).index(name) for name in names]
        self.classes = tuple(classes)

    def plot(self, sample: dict[str, Any], show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a sample with its mask or ``prediction``, if any; see :func:`plot_sample`."""
        return plot_sample(sample, self.bands, self.classes, self.colors, show_titles, suptitle)

    def _columns(self) -> dict[str, Any]:
        """Return the columns of the catalog besides path and footprint."""
        if self.labels is None:
            return {}
        return {'label': self.labels, 'category': [self.classes[label] for label in self.labels]}

    def _sample(self, index: int) -> dict[str, Any]:
        """Load a sample before transforms; raise BadTileError if it is unusable."""
        sample: dict[str, Any] = {'image': torch.from_numpy(self._load(index).astype(np.float32))}
        if self.labels is not None:
            sample['label'] = torch.tensor(self.labels[index])
        return sample

    def _load(self, index: int) -> NDArray[Any]:
        """Load pixels at the requested size, shape (C, H, W), in the file's type."""
        if index in self._cached:
            return self._cached[index]
        pixels = self._read(index)
        height, width = pixels.shape[1:]
        if min(height, width) < self.min_size:
            raise BadTileError(f'size {height}x{width} is below the minimum of {self.min_size} pixels')
        pixels = resize(pixels, self.size, crop_pct=self.crop_pct)
        if self.cache:
            self._cached[index] = pixels
        return pixels

    def _read(self, index: int) -> NDArray[Any]:
        """Read the pixels of one file unchanged, shape (C, H, W)."""
        return read_image(self.files[index], self.file_bands, self._positions, self.dtype, self.by_name)


def skip(message: str, strict: bool, remedy: str = 'repair or remove the file') -> dict[str, str]:
    """Return the sample ``{'skipped': '<path>: <reason>'}`` in place of an unusable one.

    Raises:
        ValueError: If *strict*.
    """
    if strict:
        raise ValueError(f'{message}; {remedy}, or set strict=False to skip it')
    return {'skipped': message}


def collate_skipping(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack the usable samples of a batch and list the skipped ones.

    Returns:
        The stacked keys of the usable samples: ``image``, shape (B, C, H, W), ``label``, shape (B,), if
        labeled, and so on; and, only if samples were skipped, ``skipped``, the list of their messages.

    Raises:
        ValueError: If the images differ in size.
    """
    good = [sample for sample in samples if 'skipped' not in sample]
    skipped = [sample['skipped'] for sample in samples if 'skipped' in sample]
    shapes = sorted({tuple(sample['image'].shape) for sample in good})
    if len(shapes) > 1:
        raise ValueError(
            f'all images in a batch must have the same shape (C, H, W), got {shapes[:4]}; '
            'set size to resize all tiles to one size'
        )
    batch: dict[str, Any] = default_collate(good) if good else {}
    return {**batch, 'skipped': skipped} if skipped else batch


def footprint(path: Path) -> Any:
    """Return an image's footprint in longitude and latitude, by its header or the JSON beside it, or None."""
    try:
        if path.suffix.lower() in RASTER_SUFFIXES:
            with open_raster(path, any_size=True) as source:
                left, bottom, right, top = source.bounds
                ring = f'{left} {bottom}, {right} {bottom}, {right} {top}, {left} {top}, {left} {bottom}'
                place = gpd.GeoSeries.from_wkt([f'POLYGON (({ring}))'], crs=source.crs).to_crs(CATALOG_CRS)[0]
                return place if np.isfinite(place.bounds).all() else None
        text = json.loads(path.with_suffix('.json').read_text(encoding='utf-8'))['raw_location']
        return gpd.GeoSeries.from_wkt([text], on_invalid='ignore')[0]
    except Exception:  # readers of coordinates, text and headers raise many kinds of errors
        return None
