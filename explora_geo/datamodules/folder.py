"""Data module over any folder of images."""

from collections.abc import Sequence
from typing import Literal

from torch.utils.data import Subset

from ..datasets import FolderDataset, PackedDataset
from ..datasets.files import PathLike, evenly_spaced
from ..datasets.packed import is_pack
from ..transforms import ViewsConfig
from .base import ArchiveDataModule
from .statistics import SAMPLES, Statistic, usable


class FolderDataModule(ArchiveDataModule):
    """LightningDataModule for folders of image tiles.

    Training needs no labels. Where a folder has one sub-folder per class, batches carry ``label``,
    which validation uses to watch the features by k-nearest neighbours. Labels are numbered by
    the training folder's classes wherever those include the classes of the other folder.
    """

    def __init__(
        self,
        root: PathLike,
        val_root: PathLike | None = None,
        test_root: PathLike | None = None,
        bands: Sequence[str] | None = None,
        file_bands: Sequence[str] | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        mean: Statistic = 'auto',
        std: Statistic = 'auto',
        crop_scale: tuple[float, float] = (0.2, 1.0),
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        quarter_turns: bool = False,
        views: ViewsConfig | None = None,
        val_split: float = 0.0,
        min_size: int = 1,
        strict: bool = False,
        cache: bool = False,
    ) -> None:
        """Initialize a new FolderDataModule instance.

        Args:
            root: Folder of training images, a pack that `explora-geo pack` made of one, a list of image files
                (text, CSV or Parquet) or a pattern such as ``tiles/*/*.tif``.
            val_root: Folder of validation images.
            test_root: Folder of test images, also used to predict; *root* is used if None.
            bands: Names of the bands to use, in any order; all bands if None.
            file_bands: Names of all bands in file order, see :class:`FolderDataset`.
            image_size: Side of the images: the shorter side is resized and the centre cropped;
                training takes random crops of that.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            mean: Mean of each band in units of the files: by band name, in the order of *bands*,
                ``'imagenet'`` (red, green and blue from 0 to 255) or ``'auto'``, estimated from
                up to 512 evenly spaced training tiles.
            std: Standard deviation of each band, likewise.
            crop_scale: Smallest and largest share of an image's area in a training crop.
            horizontal_flip: Whether to mirror training images left to right.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            views: Several crops of every training image, under the key ``views``, instead of one;
                objectives that need several bring their own if None.
            val_split: Share of the training images held out for validation, evenly spaced; only
                without *val_root*.
            min_size: Images with a shorter side below this are not used.
            strict: Whether to raise on a tile that cannot be used instead of skipping it.
            cache: Whether to keep decoded tiles in memory; each worker keeps its own.

        Raises:
            ValueError: If an argument is out of range or contradicts another.
        """
        if not 0 <= val_split < 1:
            raise ValueError(f'val_split must be at least 0 and below 1, got {val_split}.')
        if val_split and val_root is not None:
            raise ValueError(f'Give either val_root or val_split, got {val_root} and {val_split}.')
        super().__init__(
            FolderDataset,
            image_size,
            batch_size,
            num_workers,
            mean,
            std,
            crop_scale,
            horizontal_flip,
            vertical_flip,
            quarter_turns,
            views,
            bands=bands,
            file_bands=file_bands,
            size=image_size,
            min_size=min_size,
            strict=strict,
            cache=cache,
        )
        self.root = root
        self.val_root = val_root
        self.test_root = test_root
        self.val_split = val_split

    def setup(self, stage: str) -> None:
        """Set up datasets, and the statistics of the bands.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        if self.train_dataset is None:
            self._setup_training()
        if stage in {'test', 'predict'} and self.test_dataset is None:
            test = self._make_dataset('test')
            if test is not None:
                self._share_labels(test)
            self.test_dataset = test
        if stage == 'predict':
            self.predict_dataset = self.test_dataset or self.dataset

    def _setup_training(self) -> None:
        train = self._make_dataset('train')
        if train is None:
            raise ValueError(f'{type(self).__name__} needs training images.')
        # Also the one that `plot` of the base class shows.
        self.dataset = train
        held_out = evenly_spaced(len(train), round(len(train) * self.val_split))
        kept = sorted(set(range(len(train))) - set(held_out))
        if not kept:
            raise ValueError(f'val_split={self.val_split} leaves none of {len(train)} images for training.')
        sampled = [kept[i] for i in evenly_spaced(len(kept), SAMPLES)]
        images = usable((train[i] for i in sampled), self.root)
        self._set_statistics(train.bands, images, *self._published(train))
        if held_out:
            self.train_dataset = Subset(train, kept)
            self.val_dataset = Subset(train, held_out)
        else:
            val = self._make_dataset('val')
            if val is not None:
                self._share_labels(val)
            self.train_dataset, self.val_dataset = train, val

    def _make_dataset(self, split: Literal['train', 'val', 'test']) -> FolderDataset | None:
        """Make the dataset of a split, or return None if there is none."""
        root = {'train': self.root, 'val': self.val_root, 'test': self.test_root}[split]
        if root is None:
            return None
        if is_pack(root):  # says its own file bands, and its tiles passed `min_size` if they were to
            kept = {k: self.kwargs[k] for k in ('bands', 'size', 'strict')}
            return PackedDataset(root, **kept)
        return FolderDataset(root, **self.kwargs)

    def _published(self, dataset: FolderDataset) -> tuple[Statistic | None, Statistic | None]:
        """Return mean and std to use for 'auto' instead of an estimate."""
        return None, None

    def _share_labels(self, dataset: FolderDataset) -> None:
        """Number labels as in the first folder that has all classes of this one."""
        wanted = set(dataset.classes)
        for other in (self.dataset, self.val_dataset):
            if wanted and isinstance(other, FolderDataset) and wanted <= set(other.classes):
                dataset.relabel(other.classes)
                return
        # Labels mean the same everywhere: what training does not know is numbered after what it does.
        known = self.dataset.classes if isinstance(self.dataset, FolderDataset) else ()
        if wanted and known:
            dataset.relabel([*known, *(name for name in dataset.classes if name not in known)])
