"""Data modules of data sets that come with their own parts."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset

from ..datasets.files import PathLike, evenly_spaced
from ..transforms import ViewsConfig
from .base import ArchiveDataModule
from .statistics import SAMPLES, Statistic, usable

Part = Literal['train', 'val', 'test', 'predict']


class SplitDataModule(ArchiveDataModule):
    """Base class: sub-classes make the data set of each part.

    Attributes:
        published: Mean and standard deviation by band for 'auto', or None to estimate them.
    """

    published: tuple[Statistic | None, Statistic | None] = (None, None)

    def __init__(
        self,
        dataset_class: type[Dataset[Any]],
        root: PathLike,
        bands: Sequence[str] | None = None,
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
        **kwargs: Any,
    ) -> None:
        """Initialize a new SplitDataModule instance.

        Args:
            dataset_class: Class used to make datasets.
            root: Folder of the data set.
            bands: Names of the bands to use, in any order; all bands if None.
            image_size: Side of the images: the shorter side is resized and the centre cropped; training
                takes random crops of that.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            mean: Mean of each band in units of the files, by band name, in the order of *bands*, or
                ``'auto'``: published where it is, else estimated from up to 512 training images.
            std: Standard deviation of each band, likewise.
            crop_scale: Smallest and largest share of an image's area in a training crop.
            horizontal_flip: Whether to mirror training images left to right.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            views: Several crops of every training image, for objectives that compare them.
            **kwargs: Further arguments of the datasets.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__(
            dataset_class,
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
            size=image_size,
            **kwargs,
        )
        self.root = root

    @abstractmethod
    def make(self, part: Part) -> Dataset[Any] | None:
        """Make the data set of a part, or return None if there is none."""

    def setup(self, stage: str) -> None:
        """Set up datasets, and the statistics of the bands.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        if self.train_dataset is None:
            self.dataset = self.train_dataset = self.make('train')
            self._set_statistics(self._bands(), self._samples(), *self.published)
        if stage in {'fit', 'validate'} and self.val_dataset is None:
            self.val_dataset = self.make('val')
        if stage == 'test' and self.test_dataset is None:
            self.test_dataset = self.make('test')
        if stage == 'predict' and self.predict_dataset is None:
            self.predict_dataset = self.make('predict')

    def _bands(self) -> tuple[str, ...]:
        dataset: Any = self.train_dataset
        bands: tuple[str, ...] = getattr(dataset, 'dataset', dataset).bands
        return bands

    def _samples(self) -> Iterator[Tensor]:
        dataset: Any = self.train_dataset
        return usable((dataset[i] for i in evenly_spaced(len(dataset), SAMPLES)), self.root)
