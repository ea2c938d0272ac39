"""Data module over folders of images and masks."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..datasets import FolderDataset, MaskFolderDataset
from ..datasets.files import PathLike
from .folder import FolderDataModule
from .statistics import Statistic


class MaskFolderDataModule(FolderDataModule):
    """LightningDataModule for segmentation, or dense regression, in folders of images and masks.

    Every root holds the folders ``images`` and ``masks``; crops, flips and turns move both. Pre-training
    reads the images only.
    """

    def __init__(
        self,
        root: PathLike,
        val_root: PathLike | None = None,
        test_root: PathLike | None = None,
        bands: Sequence[str] | None = None,
        file_bands: Sequence[str] | None = None,
        classes: Sequence[str] = (),
        colours: Sequence[Sequence[int]] = (),
        mask_values: Mapping[int, int] | None = None,
        ignore_black: int | None = None,
        numbers: bool = False,
        image_size: int = 224,
        batch_size: int = 16,
        num_workers: int = 0,
        mean: Statistic = 'auto',
        std: Statistic = 'auto',
        crop_scale: tuple[float, float] = (0.5, 1.0),
        horizontal_flip: bool = True,
        vertical_flip: bool = True,
        quarter_turns: bool = True,
        val_split: float = 0.0,
        strict: bool = False,
        cache: bool = False,
    ) -> None:
        """Initialize a new MaskFolderDataModule instance.

        Args:
            root: Folder of training images and masks.
            val_root: The same for validation.
            test_root: The same for tests, also used to predict; *root* is used if None.
            bands: Names of the bands to use, in any order; all bands if None.
            file_bands: Names of all bands in file order.
            classes: Names of the classes.
            colours: Colour of each class, red, green and blue from 0 to 255.
            mask_values: Class of each value in the files; values are classes if None.
            ignore_black: Value of the mask where every band is 0, for the task's ``ignore_index``.
            numbers: Whether masks hold numbers to regress.
            image_size: Side of the images: the shorter side is resized and the centre cropped; training
                takes random crops of that.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            mean: Mean of each band, see :class:`FolderDataModule`.
            std: Standard deviation of each band, likewise.
            crop_scale: Smallest and largest share of an image's area in a training crop.
            horizontal_flip: Whether to mirror training images left to right.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            val_split: Share of the training images held out for validation, evenly spaced.
            strict: Whether to raise on a tile that cannot be used instead of skipping it.
            cache: Whether to keep decoded images in memory.

        Raises:
            ValueError: If an argument is out of range or contradicts another.
        """
        super().__init__(
            root,
            val_root=val_root,
            test_root=test_root,
            bands=bands,
            file_bands=file_bands,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            mean=mean,
            std=std,
            crop_scale=crop_scale,
            horizontal_flip=horizontal_flip,
            vertical_flip=vertical_flip,
            quarter_turns=quarter_turns,
            val_split=val_split,
            strict=strict,
            cache=cache,
        )
        self.dataset_class = MaskFolderDataset
        self.kwargs: dict[str, Any] = {
            'bands': bands,
            'file_bands': file_bands,
            'classes': classes,
            'colours': colours,
            'mask_values': mask_values,
            'ignore_black': ignore_black,
            'numbers': numbers,
            'size': image_size,
            'strict': strict,
            'cache': cache,
        }

    def _make_dataset(self, split: Literal['train', 'val', 'test']) -> FolderDataset | None:
        root = {'train': self.root, 'val': self.val_root, 'test': self.test_root}[split]
        return None if root is None else MaskFolderDataset(root, **self.kwargs)

    def _share_labels(self, dataset: FolderDataset) -> None:
        """Masks hold classes by number already."""
