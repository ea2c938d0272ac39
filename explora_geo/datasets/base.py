"""Base data set of tiles: bands by name, damaged files skipped, resizing, plots, footprints."""

import warnings
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torchgeo.datasets import NonGeoDataset

from ..bands import RGB, select_bands
from .catalog import build_catalog
from .files import PathLike
from .images import BadTileError, read_image, resize, skip
from .plotting import plot_sample

#: Function applied to each sample.
Transforms = Callable[[dict[str, Any]], dict[str, Any]]


def former_name(arguments: dict[str, Any], old: str, new: str, value: Any) -> Any:
    """The value of an argument that had another name in earlier versions, with a warning.

    Args:
        arguments: Further arguments by name; the former one is taken out.
        old: Former name.
        new: Name now.
        value: Value by the new name.
    """
    if arguments.get(old) is not None:
        text = f'{old} is called {new} now; the former name ends with the next release'
        warnings.warn(text, FutureWarning, stacklevel=3)
        value = arguments[old]
    arguments.pop(old, None)
    return value


class TileDataset(NonGeoDataset):
    """Base of all tile data sets: images by path, in the files' own units.

    A tile that cannot be used is never replaced in silence: :meth:`__getitem__` returns
    ``{'skipped': '<path>: <reason>'}``, which :func:`collate_skipping` gathers, or raises if *strict*.
    Sub-classes find the files; those that read another kind of file override :meth:`_read`, those whose
    samples hold more than image and label :meth:`_sample`.

    Attributes:
        root: Folder of the data set.
        files: Paths of the images, in the order of their indices.
        labels: Label of each file, or None if unlabeled.
        classes: Names of the classes in the order of their labels, empty if unlabeled.
        file_bands: Names of the bands in the files.
        bands: Names of the bands of a sample, in order.
        dtype: Pixel type of the files, None for any.
        by_name: Whether files that state other orders of the same bands are read by name.
    """

    file_bands: tuple[str, ...] = RGB
    dtype: str | None = 'uint8'
    by_name = False

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
            labels: Label of each, or None.
            classes: Names of the classes.
            bands: Names of the bands to return, in any order; all bands if None.
            size: Side of the returned images, pixels: the shorter side is resized and the center cropped.
                Images keep their size if None.
            strict: Whether to raise on a tile that cannot be used instead of skipping it.
            transforms: Function applied to each sample.
            min_size: Images with a shorter side below this, pixels, before resizing, are not used.
            cache: Whether to keep decoded tiles in memory, in their own pixel type. Each worker process
                keeps its own.

        Raises:
            FileNotFoundError: If the list is empty.
            ValueError: If a band does not exist, or a label or size is out of range.
        """
        for name, value in (('size', size), ('min_size', min_size)):
            if value is not None and value < 1:
                raise ValueError(f'{name} must be at least 1 pixel, got {value}.')
        if not len(files):
            raise FileNotFoundError(f'{root} lists no image of this split; check the split and the path.')
        if labels is not None and classes and not 0 <= min(labels) <= max(labels) < len(classes):
            raise ValueError(
                f'Labels of {root} must be 0 to {len(classes) - 1}, got {min(labels)} to {max(labels)}.'
            )
        self.root, self.files = Path(root), list(files)
        self.labels = None if labels is None else list(labels)
        self.classes = tuple(classes)
        self.size, self.min_size = size, min_size
        self.strict, self.cache, self.transforms = strict, cache, transforms
        self._positions = select_bands(bands, self.file_bands)
        self.bands = tuple(self.file_bands[i] for i in self._positions)
        self._cached: dict[int, NDArray[Any]] = {}

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Label of each class."""
        return {name: i for i, name in enumerate(self.classes)}

    def __len__(self) -> int:
        """Return the number of files, whether or not they can be read."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        Args:
            index: Position in :attr:`files`.

        Returns:
            ``image``, float32 in the file's own units (8-bit: 0 to 255), shape (C, H, W), ``label``, int64,
            shape (), if labeled, and what the data set adds; or ``skipped``, which file and why.

        Raises:
            IndexError: If the index is out of range.
            ValueError: If the tile cannot be used and *strict* is set.
        """
        index = range(len(self))[index]
        try:
            sample = self._sample(index)
        except BadTileError as error:
            return skip(f'{error.path or self.files[index]}: {error}', self.strict)
        return sample if self.transforms is None else self.transforms(sample)

    @cached_property
    def catalog(self) -> gpd.GeoDataFrame:
        """One row per file with its footprint in longitude and latitude, for QGIS and geopandas."""
        columns: dict[str, Any] = {}
        if self.labels is not None:
            columns = {'label': self.labels, 'category': [self.classes[label] for label in self.labels]}
        return build_catalog(self.files, columns)

    def relabel(self, classes: Sequence[str]) -> None:
        """Number the labels by another list of classes, e.g. that of the training folder.

        Args:
            classes: Names of classes in the order of their labels.

        Raises:
            ValueError: If a class of this dataset is not in the list.
        """
        missing = [name for name in self.classes if name not in classes]
        if missing:
            raise ValueError(
                f'Class folders {missing} of {self.root} are not among the classes '
                f'{list(classes)}; rename the folders or remove them.'
            )
        numbers = [list(classes).index(name) for name in self.classes]
        self.labels = None if self.labels is None else [numbers[label] for label in self.labels]
        self.classes = tuple(classes)

    def plot(self, sample: dict[str, Any], show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a sample.

        Args:
            sample: A sample returned by :meth:`__getitem__`, optionally with a ``prediction``.
            show_titles: Whether to show titles, such as class names.
            suptitle: Title of the whole figure.

        Returns:
            The figure, in true color if the bands allow it; the frames of a series side by side.
        """
        return plot_sample(sample, self.bands, self.classes, show_titles, suptitle)

    def _sample(self, index: int) -> dict[str, Any]:
        """A sample before transforms; raises BadTileError if it cannot be used."""
        sample: dict[str, Any] = {'image': torch.from_numpy(self._load(index).astype(np.float32))}
        if self.labels is not None:
            sample['label'] = torch.tensor(self.labels[index])
        return sample

    def _load(self, index: int) -> NDArray[Any]:
        """Pixels of the size asked for, shape (C, H, W), in the file's type."""
        if index in self._cached:
            return self._cached[index]
        pixels = self._read(index)
        if min(pixels.shape[1:]) < self.min_size:
            height, width = pixels.shape[1:]
            raise BadTileError(f'its size {height}x{width} is below the minimum of {self.min_size} pixels')
        pixels = self._resize(pixels)
        if self.cache:
            self._cached[index] = pixels
        return pixels

    def _read(self, index: int) -> NDArray[Any]:
        """Pixels of one file as they are, shape (C, H, W)."""
        return read_image(self.files[index], self.file_bands, self._positions, self.dtype, self.by_name)

    def _resize(self, pixels: NDArray[Any]) -> NDArray[Any]:
        return pixels if self.size is None else resize(pixels, self.size)
