"""A folder of images and a folder of masks, for segmentation and dense regression."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from explora_geo.datasets.files import IMAGE_SUFFIXES
from explora_geo.datasets.folder import FolderDataset
from explora_geo.datasets.images import BadTileError, open_raster, read_header, resize, without_data
from explora_geo.datasets.plotting import Color
from explora_geo.datasets.remote import PathLike


class MaskFolderDataset(FolderDataset):
    """Images in ``root/images`` and masks of the same name and size in ``root/masks``.

    Masks are single-band images of classes (the indices in palette images) or of numbers to regress. A
    tile whose mask is missing, damaged or of another size is skipped and reported, or raises ValueError if
    *strict*. Samples have a ``mask``, shape (H, W), int64 for classes and float32 for numbers.
    """

    def __init__(
        self,
        root: PathLike,
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
            classes: Names of the classes in the order of their values, for plots and maps.
            colors: Color of each class, red, green and blue from 0 to 255.
            mask_values: Class of each value in the files, such as ``{0: 0, 255: 1}``; values are classes if
                None. Unlisted values are an error.
            ignore_black: Mask value where every band of the image is 0 (outside the scene).
            numbers: Whether masks hold numbers to regress instead of classes.
            **kwargs: Bands and images; see :class:`FolderDataset`. Masks are resized by nearest neighbor.

        Raises:
            FileNotFoundError: If one of the folders does not exist or holds no image.
            ValueError: If band names do not match.
        """
        images, self.mask_root = Path(root) / 'images', Path(root) / 'masks'
        for folder in (images, self.mask_root):
            if not folder.is_dir():
                raise FileNotFoundError(
                    f'the folder {folder} does not exist; {root} must contain the folders images and masks'
                )
        super().__init__(images, labeled=False, **kwargs)
        self.classes, self.colors = tuple(classes), tuple(colors)
        self.mask_values = None if mask_values is None else {int(k): int(v) for k, v in mask_values.items()}
        self.ignore_black, self.numbers = ignore_black, numbers

    def _sample(self, index: int) -> dict[str, Any]:
        sample, file = super()._sample(index), self.files[index]
        path = self._mask_path(file)
        values, header = self._read_mask(path), read_header(file)
        if values.shape != (header.height, header.width):
            raise BadTileError(
                f'mask {path.name} has {values.shape[0]}x{values.shape[1]} pixels, but the image has '
                f'{header.height}x{header.width}'
            )
        if self.mask_values is not None:
            if unknown := sorted(set(np.unique(values).tolist()) - set(self.mask_values)):
                raise BadTileError(f'mask contains the values {unknown[:5]}, which are not in mask_values')
            table = values.astype(np.int64)  # holds any label, whatever the file's type
            for value, label in self.mask_values.items():
                table[values == value] = label
            values = table
        values = values.astype(np.float32 if self.numbers else np.int64)
        mask = torch.from_numpy(resize(values[None], self.size, nearest=True)[0])
        if self.ignore_black is not None:
            mask[(sample['image'] == 0).all(0)] = self.ignore_black
            if header.nodata is not None:  # filled in the image, so look for it in the file
                with open_raster(file) as source:
                    pixels = source.read([i + 1 for i in self._positions if i < source.count])
                hole = np.asarray(without_data(pixels, header.nodata).all(0))[None]
                mask[torch.from_numpy(resize(hole, self.size, nearest=True)[0])] = self.ignore_black
        return {**sample, 'mask': mask}

    def _mask_path(self, image: Path) -> Path:
        same = self.mask_root / image.relative_to(self.root)
        endings = [s for suffix in sorted(IMAGE_SUFFIXES) for s in (suffix, suffix.upper())]
        for path in (same, *map(same.with_suffix, endings)):
            if path.is_file():
                return path
        raise BadTileError(f'mask {same.with_suffix(".*")} not found')

    def _read_mask(self, path: Path) -> NDArray[Any]:
        """Read a single-band mask, shape (H, W); numbers as float32, with NaN for nodata (no measurement)."""
        with open_raster(path) as source:
            if source.count != 1:
                raise BadTileError(f'mask {path.name} has {source.count} bands, expected one')
            values: NDArray[Any] = source.read(1)
            if self.numbers:
                values = values.astype(np.float32)
                if source.nodata is not None:
                    values[values == np.float32(source.nodata)] = np.nan
            return values
