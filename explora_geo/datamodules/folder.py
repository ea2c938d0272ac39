"""Data modules for folders of images, and of images with masks."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import Dataset

from explora_geo.datamodules.base import Augment, Part, TileDataModule
from explora_geo.datasets import FolderDataset, MaskFolderDataset, PackedDataset
from explora_geo.datasets.packed import is_pack
from explora_geo.datasets.plotting import Color
from explora_geo.datasets.remote import PathLike


class FolderDataModule(TileDataModule):
    """LightningDataModule for folders of image tiles.

    Training needs no labels. If a folder has one subfolder per class, batches carry ``label``,
    which validation uses to monitor the features by k-nearest neighbors. Labels are numbered by
    the training folder's classes wherever those include the classes of the other folder.
    """

    kind: type[Any] = FolderDataset

    def __init__(
        self,
        root: PathLike,
        val_root: PathLike | None = None,
        test_root: PathLike | None = None,
        file_bands: Sequence[str] | None = None,
        val_split: float = 0.0,
        min_size: int = 1,
        **kwargs: Any,
    ) -> None:
        """Initialize a new FolderDataModule instance.

        Args:
            root: Folder of training images, a pack made by `explora-geo pack`, a list of image files
                (text, CSV or Parquet) or a pattern such as ``tiles/*/*.tif``.
            val_root: Folder of validation images.
            test_root: Folder of test images, also used for prediction, which uses *root* if None.
            file_bands: Names of all bands in file order, see :class:`FolderDataset`.
            val_split: Share of the training images held out for validation, evenly spaced; only
                without *val_root*.
            min_size: Smallest shorter side of a usable image, pixels.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.

        Raises:
            ValueError: If an argument is out of range or contradicts another.
        """
        if val_split and val_root is not None:
            raise ValueError(f'set either val_root or val_split, got {val_root} and {val_split}')
        self.held_out, self.roots = val_split, {'train': root, 'val': val_root, 'test': test_root}
        super().__init__(root, **kwargs)
        self.kwargs |= {'file_bands': file_bands, 'min_size': min_size}

    def make(self, part: Part) -> Dataset[Any] | None:
        """Make the data set of a part; prediction uses the test images, or else the training images."""
        if part == 'predict':
            return self.test_dataset or self.dataset
        root = self.roots[part]
        if root is None:
            return None
        if self.kind is FolderDataset and is_pack(root):
            # A pack names its own file bands, and any `min_size` was applied when it was made.
            return PackedDataset(root, **{k: self.kwargs[k] for k in ('bands', 'size', 'strict')})
        return self.kind(root, **self.kwargs)


class MaskFolderDataModule(FolderDataModule):
    """LightningDataModule for segmentation, or dense regression, in folders of images and masks.

    Every root holds the folders ``images`` and ``masks``; crops, flips and rotations apply to both.
    Pre-training reads only the images.
    """

    kind = MaskFolderDataset
    augmentation = Augment((0.5, 1.0), horizontal_flip=True, vertical_flip=True, quarter_turns=True)

    def __init__(
        self,
        root: PathLike,
        classes: Sequence[str] = (),
        colors: Sequence[Color] = (),
        mask_values: Mapping[int, int] | None = None,
        ignore_black: int | None = None,
        numbers: bool = False,
        batch_size: int = 16,
        colours: Sequence[Color] | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new MaskFolderDataModule instance.

        Args:
            root: Folder of training images and masks.
            classes: Names of the classes.
            colors: Color of each class, red, green and blue from 0 to 255.
            mask_values: Class of each value in the files; values are classes if None.
            ignore_black: Mask value where every band is 0, for the task's ``ignore_index``.
            numbers: Whether masks hold numbers to regress.
            batch_size: Size of each mini-batch.
            colours: Former name of *colors*.
            **kwargs: As for :class:`FolderDataModule`.
        """
        if colours is not None:
            warnings.warn(
                'colours is now called colors; the old name will be removed in the next release',
                FutureWarning,
                stacklevel=2,
            )
        super().__init__(root, batch_size=batch_size, **kwargs)
        self.kwargs |= {'classes': classes, 'colors': colours or colors, 'mask_values': mask_values}
        self.kwargs |= {'ignore_black': ignore_black, 'numbers': numbers}
