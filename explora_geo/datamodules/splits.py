"""Data modules of data sets that come with their own parts."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any, Literal

from torch import Tensor
from torch.utils.data import Dataset, Subset

from ..bands import RGB, canonical
from ..datasets import (
    Camelyon17Dataset,
    IWildCamDataset,
    NAIPLandCoverDataset,
    RESISC45Dataset,
    SpaceNet1Dataset,
)
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


class RESISC45DataModule(SplitDataModule):
    """LightningDataModule for RESISC45 with TorchGeo's splits and statistics."""

    nadir = True

    published = (
        dict(zip(RGB, (93.89391792, 97.11226906, 87.56775284), strict=True)),
        dict(zip(RGB, (51.84919672, 47.2365918, 47.06308786), strict=True)),
    )

    def __init__(self, root: PathLike, strict: bool = False, **kwargs: Any) -> None:
        """Initialize a new RESISC45DataModule instance.

        Args:
            root: Folder of ``NWPU-RESISC45`` and the split files.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            **kwargs: Images and augmentation; see :class:`SplitDataModule`.
        """
        super().__init__(RESISC45Dataset, root, strict=strict, **kwargs)

    def make(self, part: Part) -> Dataset[Any]:
        """One of the published splits; the test part to predict."""
        return RESISC45Dataset(self.root, 'test' if part == 'predict' else part, **self.kwargs)


class NAIPLandCoverDataModule(SplitDataModule):
    """LightningDataModule for NAIP land cover; tests use val and test together, as published."""

    nadir = True

    published: tuple[Statistic | None, Statistic | None] = (
        dict(zip(RGB, (255 * x for x in (0.47996818, 0.47633689, 0.42402868)), strict=True)),
        dict(zip(RGB, (255 * x for x in (0.17774512, 0.13703743, 0.11909943)), strict=True)),
    )

    def __init__(
        self,
        root: PathLike,
        bands: Sequence[str] = RGB,
        vertical_flip: bool = True,
        quarter_turns: bool = True,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new NAIPLandCoverDataModule instance.

        Args:
            root: Folder of the arrays.
            bands: Names of the bands to use; statistics are published for red, green and blue.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            strict: Whether to raise on a tile that cannot be used instead of skipping it.
            **kwargs: Images and augmentation; see :class:`SplitDataModule`.
        """
        super().__init__(
            NAIPLandCoverDataset,
            root,
            bands=bands,
            vertical_flip=vertical_flip,
            quarter_turns=quarter_turns,
            strict=strict,
            **kwargs,
        )
        if bands is None or not {canonical(b) for b in bands} <= set(RGB):
            self.published = (None, None)

    def make(self, part: Part) -> Dataset[Any]:
        """One of the published splits; val and test together to test and predict."""
        split: Any = part if part in ('train', 'val') else 'val+test'
        return NAIPLandCoverDataset(self.root, split, **self.kwargs)


class SpaceNet1DataModule(SplitDataModule):
    """LightningDataModule for SpaceNet 1, whose labelled images are parted here: no list is published.

    The split ``names`` has the paper's sizes, 5,000 images to train and 1,940 to test, in the order of the
    SHA-256 of the files' names; which images the paper has in them is not known, so it is ours. Images lie
    side by side, so that this test has neighbours in training. The split ``blocks`` parts whole blocks of the
    ground, about 1 km wide, in the same shares.
    """

    #: Training images of the paper's 6,940, and the side of a block of ground, degrees.
    share, block = 5000 / 6940, 0.01

    nadir = True

    def __init__(
        self,
        root: PathLike,
        image: Literal['3band', '8band'] = '3band',
        split: Literal['names', 'blocks'] = 'names',
        val_split: float = 0.1,
        ignore_black: int | None = 255,
        vertical_flip: bool = True,
        quarter_turns: bool = True,
        crop_scale: tuple[float, float] = (0.5, 1.0),
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new SpaceNet1DataModule instance.

        Args:
            root: Folder that holds ``SN1_buildings``.
            image: Pan-sharpened colours or eight bands.
            split: How labelled images are parted: by their ``names``, or whole ``blocks`` of the ground.
            val_split: Share of the training images that validates instead, in [0, 1); the paper has none.
            ignore_black: Value of masks outside the scene, for the task's ``ignore_index``; None counts
                black pixels as ``other``, as the paper does.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            crop_scale: Smallest and largest share of an image's area in a training crop.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            **kwargs: Images and augmentation; see :class:`SplitDataModule`.

        Raises:
            ValueError: If an argument is out of range.
        """
        if split not in ('names', 'blocks'):
            raise ValueError(f'split must be names or blocks, got {split!r}.')
        if not 0 <= val_split < 1:
            raise ValueError(f'val_split must be in [0, 1), got {val_split}.')
        super().__init__(
            SpaceNet1Dataset,
            root,
            image=image,
            ignore_black=ignore_black,
            vertical_flip=vertical_flip,
            quarter_turns=quarter_turns,
            crop_scale=crop_scale,
            strict=strict,
            **kwargs,
        )
        self.split, self.val_split = split, val_split

    def make(self, part: Part) -> Dataset[Any] | None:
        """Labelled images by the split; the published test images, which have no labels, to predict."""
        if part == 'predict':
            try:
                return SpaceNet1Dataset(self.root, 'test', **self.kwargs)
            except FileNotFoundError:
                part = 'test'
        labelled = SpaceNet1Dataset(self.root, 'train', **self.kwargs)
        names = labelled.names if self.split == 'names' else labelled.blocks(self.block)
        order = sorted(range(len(names)), key=lambda i: (sha256(names[i].encode()).hexdigest(), i))
        end = self._border(names, order, round(len(order) * self.share))
        start = self._border(names, order, end - round(end * self.val_split))
        parts = {'train': order[:start], 'val': order[start:end], 'test': order[end:]}
        return Subset(labelled, sorted(parts[part])) if parts[part] or part != 'val' else None

    @staticmethod
    def _border(names: Sequence[str], order: Sequence[int], count: int) -> int:
        """The first border between two names from a position on, so that none is in two parts."""
        while 0 < count < len(order) and names[order[count]] == names[order[count - 1]]:
            count += 1
        return count


class Camelyon17DataModule(SplitDataModule):
    """LightningDataModule for Camelyon17 of WILDS: another hospital validates, a third one tests."""

    def __init__(
        self,
        root: PathLike,
        unlabelled: bool = False,
        scored: Literal['test', 'val'] = 'test',
        image_size: int = 96,
        vertical_flip: bool = True,
        quarter_turns: bool = True,
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new Camelyon17DataModule instance.

        Args:
            root: Folder that the ``wilds`` package downloads to.
            unlabelled: Train on ``train_unlabeled``, for pre-training; validation stays labelled where the
                labelled data is there.
            scored: Part that tests: WILDS' ``test``, or ``val``, which the paper reports; then ``id_val``
                validates, so that nothing is chosen on what is reported.
            image_size: Side of the images; patches have 96 pixels.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            **kwargs: Images and augmentation; see :class:`SplitDataModule`.
        """
        super().__init__(
            Camelyon17Dataset,
            root,
            image_size=image_size,
            vertical_flip=vertical_flip,
            quarter_turns=quarter_turns,
            strict=strict,
            **kwargs,
        )
        self.unlabelled, self.scored = unlabelled, _check_scored(scored)

    def make(self, part: Part) -> Dataset[Any] | None:
        """One of the published splits; what is scored also to predict."""
        if part == 'train':
            return Camelyon17Dataset(self.root, 'train', self.unlabelled, **self.kwargs)
        return _labelled(Camelyon17Dataset, self, part)


class IWildCamDataModule(SplitDataModule):
    """LightningDataModule for iWildCam of WILDS: cameras of other places validate and test."""

    def __init__(
        self,
        root: PathLike,
        unlabelled: bool = False,
        scored: Literal['test', 'val'] = 'test',
        strict: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new IWildCamDataModule instance.

        Args:
            root: Folder that the ``wilds`` package downloads to.
            unlabelled: Train on ``extra_unlabeled``, for pre-training; validation stays labelled where the
                labelled data is there.
            scored: Part that tests: WILDS' ``test``, or ``val``, which the paper reports; then ``id_val``
                validates, so that nothing is chosen on what is reported.
            strict: Whether to raise on an image that cannot be used instead of skipping it.
            **kwargs: Images and augmentation; see :class:`SplitDataModule`.
        """
        super().__init__(IWildCamDataset, root, strict=strict, **kwargs)
        self.unlabelled, self.scored = unlabelled, _check_scored(scored)

    def make(self, part: Part) -> Dataset[Any] | None:
        """One of the published splits; what is scored also to predict."""
        if part == 'train':
            return IWildCamDataset(self.root, 'train', self.unlabelled, **self.kwargs)
        return _labelled(IWildCamDataset, self, part)


def _check_scored(scored: str) -> str:
    if scored not in ('test', 'val'):
        raise ValueError(f'scored must be test or val, got {scored!r}.')
    return scored


def _labelled(dataset_class: Any, module: Any, part: Part) -> Dataset[Any] | None:
    """A labelled part; pre-training goes without one where only unlabelled images were downloaded."""
    validating = 'val' if module.scored == 'test' else 'id_val'
    try:
        found: Dataset[Any] = dataset_class(
            module.root, validating if part == 'val' else module.scored, **module.kwargs
        )
    except FileNotFoundError:
        if module.unlabelled and part == 'val':
            return None
        raise
    return found
