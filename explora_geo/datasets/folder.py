"""Any folder of images as a dataset."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torchgeo.datasets import NonGeoDataset

from ..bands import name_bands, select_bands, spell
from .catalog import build_catalog
from .files import PathLike, evenly_spaced, find_images, locate_images, subfolders
from .images import BadTileError, Header, depth, read_header, read_image, resize, skip
from .plotting import plot_sample

#: Files looked at to tell a folder of grey images from a colour one that has some grey images.
PROBES = 16
#: Names of folders that are parts of a data set, not classes.
PARTS = frozenset({'train', 'training', 'val', 'valid', 'validation', 'test', 'testing'})


class FolderDataset(NonGeoDataset):
    """A folder of image tiles of any file type, pixel type and band count.

    A folder whose sub-folders hold images is read as one class per sub-folder, unless these are the parts of
    a data set (train, val, test); any other folder is read as unlabelled. Plain images (JPEG, PNG, ...) are
    read with Pillow, rasters (GeoTIFF, JPEG 2000, ...) with rasterio. Palette and CMYK images become red,
    green and blue, and the alpha channel of a plain RGBA image is dropped unless four bands are named.

    A tile that cannot be used is not silently replaced: :meth:`__getitem__` returns
    ``{'skipped': '<path>: <reason>'}``, which :func:`collate_skipping` gathers, or raises if
    *strict*.

    Attributes:
        files: Paths of the images, in the order of their indices.
        classes: Names of the classes in the order of their labels, empty if unlabelled.
        class_to_idx: Label of each class.
        labels: Label of each file, or None if unlabelled.
        file_bands: Names of the bands in the files.
        bands: Names of the bands of a sample, in order.
    """

    def __init__(
        self,
        root: PathLike,
        bands: Sequence[str] | None = None,
        file_bands: Sequence[str] | None = None,
        labelled: bool | None = None,
        size: int | None = None,
        min_size: int = 1,
        strict: bool = False,
        cache: bool = False,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        is_valid_file: Callable[[Path], bool] | None = None,
    ) -> None:
        """Initialize a new FolderDataset instance.

        Args:
            root: Folder of images, a list of image files (text, CSV or Parquet) or a pattern such as
                ``tiles/*/*.tif``.
            bands: Names of the bands to return, in any order; all bands if None.
            file_bands: Names of all bands in file order. By default the band descriptions stored
                in the files, or red, green and blue for 8-bit images of three bands.
            labelled: Whether sub-folders are classes; if None, they are if every image lies in
                one.
            size: Side of the returned images: the shorter side is resized and the centre cropped.
                Images keep their size if None.
            min_size: Images with a shorter side below this, before resizing, are not used.
            strict: Whether to raise on a tile that cannot be used instead of skipping it.
            cache: Whether to keep decoded tiles in memory, in their own pixel type. Each worker
                process keeps its own.
            transforms: Function applied to each sample.
            is_valid_file: Function that tells whether a file belongs to the dataset.

        Raises:
            FileNotFoundError: If the folder does not exist or holds no image.
            ValueError: If band names, class folders or sizes do not fit.
        """
        for name, value in (('size', size), ('min_size', min_size)):
            if value is not None and value < 1:
                raise ValueError(f'{name} must be at least 1 pixel, got {value}.')
        self.root, files = locate_images(root)
        self.labelled = labelled
        self.size = size
        self.min_size = min_size
        self.strict = strict
        self.cache = cache
        self.transforms = transforms
        self._cached: dict[int, NDArray[Any]] = {}

        if is_valid_file is not None:
            files = [path for path in files if is_valid_file(path)]
        if not files:
            which = ' that belongs to this split' if is_valid_file is not None else ''
            raise FileNotFoundError(
                f'{self.root} holds no image{which} (looked for JPEG, PNG, GeoTIFF and the like, '
                'also in sub-folders); check the path.'
            )
        self.files = files
        self.classes = self._find_classes()
        self.class_to_idx = {name: i for i, name in enumerate(self.classes)}
        self.labels = [self.class_to_idx[self._class_of(path)] for path in files] if self.classes else None
        path, header = self._probe(None if file_bands is None else spell(file_bands))
        self.file_bands = name_bands(header.count, header.dtype, header.descriptions, file_bands, str(path))
        self._positions, self._by_name = select_bands(bands, self.file_bands), file_bands is None
        self._dtype = header.dtype
        self.bands = tuple(self.file_bands[i] for i in self._positions)

    def __len__(self) -> int:
        """Return the number of files, whether or not they can be read."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        Args:
            index: Position in :attr:`files`.

        Returns:
            ``image``, float32 in the file's own units (8-bit: 0 to 255), shape (C, H, W), and
            ``label``, int64, shape (), if labelled; or ``skipped``, which file and why.

        Raises:
            IndexError: If the index is out of range.
            ValueError: If the tile cannot be used and *strict* is set.
        """
        try:
            pixels = self._load(index)
        except BadTileError as error:
            return skip(f'{self.files[index]}: {error}', self.strict)
        sample: dict[str, Any] = {'image': torch.from_numpy(pixels.astype(np.float32))}
        if self.labels is not None:
            sample['label'] = torch.tensor(self.labels[index])
        if self.transforms is not None:
            sample = self.transforms(sample)
        return sample

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
        self.class_to_idx = {name: i for i, name in enumerate(classes)}
        if self.labels is not None:
            self.labels = [self.class_to_idx[self._class_of(path)] for path in self.files]
        self.classes = tuple(classes)

    @cached_property
    def catalog(self) -> gpd.GeoDataFrame:
        """One row per file with its footprint in longitude and latitude, for QGIS and geopandas."""
        labels = self.labels
        columns: dict[str, Any] = {}
        if labels is not None:
            columns = {'label': labels, 'category': [self.classes[label] for label in labels]}
        return build_catalog(self.files, columns)

    def plot(self, sample: dict[str, Any], show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a sample.

        Args:
            sample: A sample returned by :meth:`__getitem__`, optionally with a ``prediction``.
            show_titles: Whether to show class names above the image.
            suptitle: Title of the whole figure.

        Returns:
            The figure, in true colour if the bands allow it.
        """
        return plot_sample(sample, self.bands, self.classes, show_titles, suptitle)

    def _load(self, index: int) -> NDArray[Any]:
        if index < 0:
            index += len(self)
        if index in self._cached:
            return self._cached[index]
        pixels = self._read(index)
        if min(pixels.shape[1:]) < self.min_size:
            height, width = pixels.shape[1:]
            raise BadTileError(f'its size {height}x{width} is below the minimum of {self.min_size} pixels')
        if self.size is not None:
            pixels = resize(pixels, self.size)
        if self.cache:
            self._cached[index] = pixels
        return pixels

    def _read(self, index: int) -> NDArray[Any]:
        """Pixels of one file as they are, shape (C, H, W)."""
        return read_image(self.files[index], self.file_bands, self._positions, self._dtype, self._by_name)

    def _class_of(self, path: Path) -> str:
        return path.relative_to(self.root).parts[0]

    def _find_classes(self) -> tuple[str, ...]:
        """Name the classes, or return nothing if the folder is unlabelled."""
        if self.labelled is False:
            return ()
        loose = [path for path in self.files if path.parent == self.root]
        if self.labelled and loose:
            raise ValueError(
                f'labelled=True needs every image in a class folder, but {len(loose)} lie directly '
                f'in {self.root}, first {loose[0].name}; move them.'
            )
        if self.labelled is None:
            return class_folders(self.root, self.files)
        classes = tuple(sorted({self._class_of(path) for path in self.files}))
        others = [p for p in subfolders(self.root) if p.name not in classes]
        empty = [p.name for p in others if not find_images(p)]
        if empty:
            raise ValueError(
                f'labelled=True needs images in every class folder, but {empty} in {self.root} '
                'hold none; fill or remove them.'
            )
        return classes

    def _probe(self, names: tuple[str, ...] | None) -> tuple[Path, Header]:
        """Find a file that stands for all, one with the bands named if there is one."""
        found: list[tuple[Path, Header]] = []
        reason = ''
        steps = evenly_spaced(len(self), PROBES)
        for index in steps:
            path = self.files[index]
            try:
                found.append((path, read_header(path, names)))
            except BadTileError as error:
                if self.strict and not found:
                    raise ValueError(
                        f'{path}: {error}; repair or remove the file, or set strict=False.'
                    ) from error
                reason = reason or f'{path}: {error}'
        if not found:
            raise ValueError(
                f'None of the {len(steps)} images looked at in {self.root} can be read '
                f'(first {reason}); check that they are complete image files.'
            )
        if names is not None:
            settled = [f for f in found if f[1].count == len(names)]
        else:
            # Grey images may be the colourless ones of a colour set.
            settled = [f for f in found if f[1].count != 1 or f[1].dtype != 'uint8']
        settled = settled or found
        # One image of another range among many is the odd one, wherever it stands.
        usual = Counter(depth(header.dtype) for _, header in settled).most_common(1)[0][0]
        return next(f for f in settled if depth(f[1].dtype) == usual)


def class_folders(root: Path, files: Iterable[Path]) -> tuple[str, ...]:
    """Name the classes of images, one per folder below the root.

    Args:
        root: Folder that holds all images.
        files: The images.

    Returns:
        Names in sorted order; none if an image lies in the root, or the folders are parts of a data set.
    """
    below = [path.relative_to(root).parts for path in files]
    names = {parts[0] for parts in below}
    if any(len(parts) == 1 for parts in below) or PARTS.issuperset(name.lower() for name in names):
        return ()
    return tuple(sorted(names))
