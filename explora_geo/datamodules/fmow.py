"""Data modules for Functional Map of the World: RGB, Sentinel-2, and series of RGB images."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from ..bands import RGB
from ..datasets import FMoWRGB, FMoWSentinel, FMoWTemporal
from ..datasets.files import PathLike, evenly_spaced
from ..datasets.fmow import SENTINEL_BANDS
from ..transforms import FramesAsChannels
from .base import LOOKED_AT, ArchiveDataModule
from .statistics import Statistic, usable

#: Share of the middle that SatMAE keeps of images that are not cropped at random.
EVAL_CROP = 224 / 256
#: Of fMoW-RGB from 0 to 255 (SatMAE's values are of 0 to 1).
RGB_MEAN = dict(zip(RGB, (255 * x for x in (0.41820073, 0.42147991, 0.39912757)), strict=True))
RGB_STD = dict(zip(RGB, (255 * x for x in (0.28774282, 0.27541766, 0.27640176)), strict=True))
#: Of fMoW-Sentinel in units of the files.
SENTINEL_MEAN = dict(
    zip(
        SENTINEL_BANDS,
        (
            *(1370.19, 1184.38, 1120.77, 1136.26, 1263.74, 1645.40, 1846.87, 1762.60, 1972.62),
            *(582.73, 14.77, 1732.16, 1247.92),
        ),
        strict=True,
    )
)
SENTINEL_STD = dict(
    zip(
        SENTINEL_BANDS,
        (
            *(633.15, 650.28, 712.13, 965.23, 948.98, 1108.07, 1258.36, 1233.15, 1364.39),
            *(472.38, 14.31, 1310.37, 1087.60),
        ),
        strict=True,
    )
)


class FMoWRGBDataModule(ArchiveDataModule):
    """LightningDataModule for fMoW-RGB, with the lists `train`, `val` and `test`.

    Splits whose list does not exist are left out: SatMAE publishes `val_62classes.csv`, ExPLoRA
    `test_62classes.csv`.
    """

    nadir = True

    published: tuple[Mapping[str, float], Mapping[str, float]] = (RGB_MEAN, RGB_STD)
    list_name = '{}_62classes.csv'

    def __init__(
        self,
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
        strict: bool = False,
    ) -> None:
        """Initialize a new FMoWRGBDataModule instance.

        Args:
            root: Folder of the lists.
            bands: Names of the bands to use, in any order; all bands if None.
            image_size: Side of the images.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            mean: Mean of each band in units of the files, by band name or in the order of *bands*;
                'auto' is SatMAE's published value.
            std: Standard deviation of each band, likewise.
            crop_scale: Smallest and largest share of an image's area in a training crop.
            horizontal_flip: Whether to mirror training images left to right.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            strict: Whether to raise on missing and unusable images instead of leaving them out.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__(
            FMoWRGB,
            image_size,
            batch_size,
            num_workers,
            mean,
            std,
            crop_scale,
            horizontal_flip,
            vertical_flip,
            quarter_turns,
            bands=bands,
            size=image_size,
            strict=strict,
        )
        self.root = root

    def setup(self, stage: str) -> None:
        """Set up datasets, and the statistics of the bands.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.
        """
        if self.train_dataset is None:
            train = self._make_dataset('train')
            self.dataset = self.train_dataset = train
            looked_at = (train[i] for i in evenly_spaced(len(train), LOOKED_AT))
            self._set_statistics(train.bands, usable(looked_at, self.root), *self.published)
        if stage in {'fit', 'validate'} and self.val_dataset is None and self._has('val'):
            self.val_dataset = self._make_dataset('val')
        if stage in {'test', 'predict'} and self.test_dataset is None and self._has('test'):
            self.test_dataset = self._make_dataset('test')
        if stage == 'predict':
            self.predict_dataset = self.test_dataset or self.val_dataset or self.train_dataset

    def _has(self, split: str) -> bool:
        return (Path(self.root) / self.list_name.format(split)).is_file()

    def _make_dataset(self, split: Literal['train', 'val', 'test']) -> Any:
        crop_pct = 1.0 if split == 'train' else EVAL_CROP
        dataset_class: Any = self.dataset_class
        return dataset_class(self.root, split, crop_pct=crop_pct, **self.kwargs)


class FMoWSentinelDataModule(FMoWRGBDataModule):
    """LightningDataModule for fMoW-Sentinel, by default SatMAE's ten bands and normalisation."""

    published = (SENTINEL_MEAN, SENTINEL_STD)
    list_name = '{}.csv'

    def __init__(
        self,
        root: PathLike,
        bands: Sequence[str] | None = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12'),
        image_size: int = 96,
        batch_size: int = 64,
        num_workers: int = 0,
        mean: Statistic = 'auto',
        std: Statistic = 'auto',
        normalise: Literal['clip', 'standard'] = 'clip',
        crop_scale: tuple[float, float] = (0.2, 1.0),
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        quarter_turns: bool = False,
        strict: bool = False,
    ) -> None:
        """Initialize a new FMoWSentinelDataModule instance.

        Args:
            root: Folder of the lists and of `fmow-sentinel`.
            bands: Names of the bands to use, in any order; all 13 if None.
            image_size: Side of the images.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            mean: Mean of each band in units of the files, by band name or in the order of *bands*;
                'auto' is SatMAE's published value.
            std: Standard deviation of each band, likewise.
            normalise: Map two standard deviations about the mean to [0, 1] and cut off the rest
                (SatMAE), or subtract the mean and divide by the standard deviation.
            crop_scale: Smallest and largest share of an image's area in a training crop.
            horizontal_flip: Whether to mirror training images left to right.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            strict: Whether to raise on missing and unusable images instead of leaving them out.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__(
            root,
            bands,
            image_size,
            batch_size,
            num_workers,
            mean,
            std,
            crop_scale,
            horizontal_flip,
            vertical_flip,
            quarter_turns,
            strict,
        )
        if normalise not in ('clip', 'standard'):
            raise ValueError(f'normalise must be clip or standard, got {normalise!r}.')
        self.dataset_class = FMoWSentinel
        self.clip = normalise == 'clip'

    def _set_statistics(
        self,
        bands: Sequence[str],
        images: Iterable[Tensor],
        mean: Statistic | None = None,
        std: Statistic | None = None,
    ) -> None:
        """Settle mean and std, as those of SatMAE's range where it is mapped to [0, 1]."""
        if self.bands:
            return
        super()._set_statistics(bands, images, mean, std)
        if self.clip:
            # (x - mean) / std with these is the position in the range; what lies outside is cut off.
            self.mean, self.std = self.mean - 2 * self.std, 4 * self.std
            self._own_statistics = self.mean, self.std, True
            self._set_transforms()


class FMoWTemporalDataModule(FMoWRGBDataModule):
    """LightningDataModule for series of fMoW-RGB images; batches carry `timestamps`, shape (B, T, 3).

    Crops and flips are the same for all frames of a series.
    """

    def __init__(
        self,
        root: PathLike,
        num_frames: int = 3,
        bands: Sequence[str] | None = None,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 0,
        mean: Statistic = 'auto',
        std: Statistic = 'auto',
        crop_scale: tuple[float, float] = (0.2, 1.0),
        horizontal_flip: bool = False,
        vertical_flip: bool = False,
        quarter_turns: bool = False,
        strict: bool = False,
    ) -> None:
        """Initialize a new FMoWTemporalDataModule instance.

        Args:
            root: Folder of the lists.
            num_frames: Images of a series T; validation and test always take the same ones.
            bands: Names of the bands to use, in any order; all bands if None.
            image_size: Side of the images.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            mean: Mean of each band in units of the files, by band name or in the order of *bands*;
                'auto' is SatMAE's published value.
            std: Standard deviation of each band, likewise.
            crop_scale: Smallest and largest share of an image's area in a training crop.
            horizontal_flip: Whether to mirror training series left to right; SatMAE does not.
            vertical_flip: Whether to mirror training series top to bottom.
            quarter_turns: Whether to turn training series by multiples of 90 degrees.
            strict: Whether to raise on missing and unusable images instead of leaving them out.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__(
            root,
            bands,
            image_size,
            batch_size,
            num_workers,
            mean,
            std,
            crop_scale,
            horizontal_flip,
            vertical_flip,
            quarter_turns,
            strict,
        )
        self.dataset_class = FMoWTemporal
        self.num_frames = num_frames

    def _make_dataset(self, split: Literal['train', 'val', 'test']) -> FMoWTemporal:
        crop_pct = 1.0 if split == 'train' else EVAL_CROP
        return FMoWTemporal(
            self.root, split, self.num_frames, split == 'train', crop_pct=crop_pct, **self.kwargs
        )

    def _normaliser(self, mean: Tensor, std: Tensor) -> Any:
        return FramesAsChannels(
            super()._normaliser(mean.repeat(self.num_frames), std.repeat(self.num_frames))
        )

    def _view(self, mean: Tensor, std: Tensor) -> Any:
        return FramesAsChannels(super()._view(mean.repeat(self.num_frames), std.repeat(self.num_frames)))
