"""A folder of images with a folder of masks: segmentation and dense regression."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .base import former_name
from .files import IMAGE_SUFFIXES, PathLike
from .folder import FolderDataset
from .images import BadTileError, _raster, without_data
from .plot_masks import Color, plot_masks


class MaskFolderDataset(FolderDataset):
    """Images in ``root/images`` and masks of the same name and size in ``root/masks``.

    Masks are images of one band: classes per pixel (of palette images the indices), or numbers. A tile
    whose mask is missing, damaged or of another size is skipped and named, or raises if *strict*.

    Attributes:
        classes: Names of the classes in the order of their values.
        colors: Color of each class, red, green and blue from 0 to 255.
    """

    def __init__(
        self,
        root: PathLike,
        bands: Sequence[str] | None = None,
        file_bands: Sequence[str] | None = None,
        classes: Sequence[str] = (),
        colors: Sequence[Color] = (),
        mask_values: Mapping[int, int] | None = None,
        ignore_black: int | None = None,
        numbers: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new MaskFolderDataset instance.

        Args:
            root: Folder that holds ``images`` and ``masks``.
            bands: Names of the bands to return, in any order; all bands if None.
            file_bands: Names of all bands in file order, see :class:`FolderDataset`.
            classes: Names of the classes, for plots and maps.
            colors: Color of each class.
            mask_values: Class of each value in the files, such as ``{0: 0, 255: 1}``; values are classes if
                None. Values that are not listed are an error.
            ignore_black: Value of the mask where every band of the image is 0 (outside the scene).
            numbers: Whether masks hold numbers to regress instead of classes.
            **kwargs: ``size``, ``strict``, ``cache`` and ``transforms`` of :class:`FolderDataset`; masks are
                resized without mixing classes.

        Raises:
            FileNotFoundError: If one of the folders does not exist or holds no image.
            ValueError: If band names do not fit.
        """
        colors = former_name(kwargs, 'colours', 'colors', colors)
        folder = Path(root)
        for name in ('images', 'masks'):
            if not (folder / name).is_dir():
                raise FileNotFoundError(f'There is no folder {folder / name}: put images and masks there.')
        super().__init__(folder / 'images', bands, file_bands, labeled=False, **kwargs)
        self.classes, self.colors = tuple(classes), tuple(colors)
        self.mask_root = folder / 'masks'
        self.mask_values = None if mask_values is None else {int(k): int(v) for k, v in mask_values.items()}
        self.ignore_black, self.numbers = ignore_black, numbers

    def plot(self, sample: dict[str, Any], show_titles: bool = True, suptitle: str | None = None) -> Figure:
        """Plot a sample: image, mask and perhaps ``prediction``; see :meth:`TileDataset.plot`."""
        return plot_masks(sample, self.bands, self.classes, self.colors, show_titles, suptitle)

    def _sample(self, index: int) -> dict[str, Any]:
        """Image and ``mask``, int64 or, of numbers, float32, shape (H, W)."""
        sample = super()._sample(index)
        return {**sample, 'mask': self._mask(index, sample['image'])}

    def _mask(self, index: int, image: Tensor) -> Tensor:
        path = self._mask_path(self.files[index])
        values = read_mask(path, self.numbers)
        original, hole = self._original(self.files[index])
        if values.shape != original:
            raise BadTileError(
                f'its mask {path.name} has {values.shape[0]}x{values.shape[1]} pixels, the image '
                f'{original[0]}x{original[1]}'
            )
        if self.mask_values is not None:
            unknown = sorted(set(np.unique(values).tolist()) - set(self.mask_values))
            if unknown:
                raise BadTileError(
                    f'its mask holds the values {unknown[:5]}, which mask_values does not list'
                )
            table = values.astype(np.int64)  # of any label, whatever the file's type can hold
            for value, label in self.mask_values.items():
                table[values == value] = label
            values = table
        dtype = np.float32 if self.numbers else np.int64
        mask = resize_mask(torch.from_numpy(values.astype(dtype)), self.size)
        if self.ignore_black is not None:
            mask[(image == 0).all(0)] = self.ignore_black
            if hole is not None:  # the image has other values there
                mask[resize_mask(torch.from_numpy(hole), self.size)] = self.ignore_black
        return mask

    def _mask_path(self, image: Path) -> Path:
        relative = image.relative_to(self.root)
        same = self.mask_root / relative
        if same.is_file():
            return same
        for suffix in sorted(IMAGE_SUFFIXES):
            for spelled in (suffix, suffix.upper()):
                if same.with_suffix(spelled).is_file():
                    return same.with_suffix(spelled)
        raise BadTileError(f'there is no mask {same.with_suffix(".*")}')

    def _original(self, image: Path) -> tuple[tuple[int, int], NDArray[np.bool_] | None]:
        """Height and width of an image's file, and where it has no data if it says so."""
        with _raster(image) as source:
            hole: NDArray[np.bool_] | None = None
            if self.ignore_black is not None and source.nodata is not None:
                pixels = source.read([i + 1 for i in self._positions if i < source.count])
                hole = np.asarray(without_data(pixels, source.nodata).all(0))
            return (source.height, source.width), hole


def read_mask(path: Path, numbers: bool = False) -> NDArray[Any]:
    """Read the one band of a mask; of palette images the indices.

    Args:
        path: Image file of any kind.
        numbers: Whether the mask holds numbers: nodata is then NaN, no measurement.

    Returns:
        Values, shape (H, W), float32 for numbers, else in the file's type.

    Raises:
        BadTileError: If the file is damaged or has several bands.
    """
    with _raster(path) as source:
        if source.count != 1:
            raise BadTileError(f'its mask {path.name} has {source.count} bands instead of one')
        values = source.read(1)
        if numbers:
            values = values.astype(np.float32)
            if source.nodata is not None:
                values[values == np.float32(source.nodata)] = np.nan
        return values


def resize_mask(mask: Tensor, size: int | None) -> Tensor:
    """Resize the shorter side and crop the center square as images are, taking the nearest value.

    Args:
        mask: Values, shape (H, W).
        size: Side of the result; the mask itself if None.

    Returns:
        Values, shape (size, size).
    """
    if size is None:
        return mask
    height, width = mask.shape
    if min(height, width) != size:
        scale = size / min(height, width)
        target = (max(size, round(height * scale)), max(size, round(width * scale)))
        resized = F.interpolate(mask[None, None].double(), target, mode='nearest-exact')
        mask = resized[0, 0].to(mask.dtype)
    top, left = (mask.shape[0] - size) // 2, (mask.shape[1] - size) // 2
    return mask[top : top + size, left : left + size].clone()
