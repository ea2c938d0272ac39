"""Images that a list names, with one class each: the base of data sets that come with tables."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torchgeo.datasets import NonGeoDataset

from ..bands import RGB, select_bands
from .files import PathLike
from .images import BadTileError, read_image, resize, skip
from .plotting import plot_sample


class ListedDataset(NonGeoDataset):
    """Images by path, read in the files' own units; an image that cannot be used is skipped and named.

    Attributes:
        files: Paths of the images, in the order of their indices.
        labels: Label of each file, or None if unlabelled.
        classes: Names of the classes in the order of their labels.
        bands: Names of the bands of a sample, in order.
        dtype: Pixel type of the files, None for any.
    """

    file_bands: tuple[str, ...] = RGB
    dtype: str | None = 'uint8'

    def __init__(
        self,
        root: PathLike,
        files: Sequence[Path],
        labels: Sequence[int] | None,
        classes: Sequence[str],
        bands: Sequence[str] | None = None,
        size: int | None = None,
        strict: bool = False,
        transforms: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    ) -> None:
        """Initialize a new ListedDataset instance.

        Args:
            root: Folder of the data set.
            files: Paths of the images.
            labels: Label of each, or None.
            classes: Names of the classes.
            bands: Names of the bands to return, in any order; all bands if None.
            size: Side of the returned images: the shorter side is resized and the centre cropped.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            transforms: Function applied to each sample.

        Raises:
            FileNotFoundError: If the list is empty or its first image does not exist.
            ValueError: If a band does not exist, or a label is out of range.
        """
        if not files:
            raise FileNotFoundError(f'{root} lists no image of this split; check the split and the path.')
        if not files[0].is_file():
            raise FileNotFoundError(f'There is no image {files[0]}, which the list of {root} names first.')
        if labels is not None and classes and not 0 <= min(labels) <= max(labels) < len(classes):
            raise ValueError(
                f'Labels of {root} must be 0 to {len(classes) - 1}, got {min(labels)} to {max(labels)}.'
            )
        self.root = Path(root)
        self.files = list(files)
        self.labels = None if labels is None else list(labels)
        self.classes = tuple(classes)
        self.size = size
        self.strict = strict
        self.transforms = transforms
        self._positions = select_bands(bands, self.file_bands)
        self.bands = tuple(self.file_bands[i] for i in self._positions)

    def __len__(self) -> int:
        """Return the number of listed images, whether or not they can be read."""
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one sample.

        Args:
            index: Position in :attr:`files`.

        Returns:
            ``image``, float32, shape (C, H, W), and ``label``, int64, shape (), if labelled; or ``skipped``.

        Raises:
            ValueError: If the image cannot be used and *strict* is set.
        """
        try:
            pixels = self._read(self.files[index])
        except BadTileError as error:
            return skip(f'{self.files[index]}: {error}', self.strict, 'repair the file')
        if self.size is not None:
            pixels = resize(pixels, self.size)
        sample: dict[str, Any] = {'image': torch.from_numpy(pixels.astype(np.float32))}
        if self.labels is not None:
            sample['label'] = torch.tensor(self.labels[index])
        return sample if self.transforms is None else self.transforms(sample)

    def plot(self, sample: dict[str, Any], show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a sample.

        Args:
            sample: A sample returned by :meth:`__getitem__`, optionally with a ``prediction``.
            show_titles: Whether to show class names above the image.
            suptitle: Title of the whole figure.

        Returns:
            The figure.
        """
        return plot_sample(sample, self.bands, self.classes, show_titles, suptitle)

    def _read(self, path: Path) -> NDArray[Any]:
        """Pixels of an image, shape (C, H, W)."""
        return read_image(path, self.file_bands, self._positions, self.dtype)
