"""Data modules for Functional Map of the World: RGB, Sentinel-2, and series of RGB images."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from explora_geo.bands import RGB
from explora_geo.datamodules.base import Augment, Part, TileDataModule
from explora_geo.datamodules.statistics import Statistics
from explora_geo.datasets import FMoWRGB, FMoWSentinel, FMoWTemporal
from explora_geo.datasets.fmow import SENTINEL_BANDS
from explora_geo.datasets.remote import PathLike
from explora_geo.transforms import FramesAsChannels

#: Share of the side in SatMAE's center crop of images that are not cropped at random.
EVAL_CROP = 224 / 256
#: Statistics of fMoW-RGB from 0 to 255 (SatMAE's values are for 0 to 1).
RGB_MEAN = dict(zip(RGB, (255 * x for x in (0.41820073, 0.42147991, 0.39912757)), strict=True))
RGB_STD = dict(zip(RGB, (255 * x for x in (0.28774282, 0.27541766, 0.27640176)), strict=True))
#: Statistics of fMoW-Sentinel in units of the files.
_MEANS = (
    *(1370.19, 1184.38, 1120.77, 1136.26, 1263.74, 1645.40, 1846.87, 1762.60, 1972.62),
    *(582.73, 14.77, 1732.16, 1247.92),
)
_STDS = (
    *(633.15, 650.28, 712.13, 965.23, 948.98, 1108.07, 1258.36, 1233.15, 1364.39),
    *(472.38, 14.31, 1310.37, 1087.60),
)
SENTINEL_MEAN = dict(zip(SENTINEL_BANDS, _MEANS, strict=True))
SENTINEL_STD = dict(zip(SENTINEL_BANDS, _STDS, strict=True))


class FMoWRGBDataModule(TileDataModule):
    """LightningDataModule for fMoW-RGB, with the lists `train`, `val` and `test`.

    Splits without a list are left out: SatMAE publishes `val_62classes.csv`, ExPLoRA
    `test_62classes.csv`. Statistics default to SatMAE's.
    """

    nadir = True
    published = Statistics(RGB_MEAN, RGB_STD)
    kind: type[FMoWRGB] = FMoWRGB

    def make(self, part: Part) -> Dataset[Any] | None:
        """Make a split; prediction uses the test images, or else those of validation or training."""
        if part == 'predict':
            return self.test_dataset or self.val_dataset or self.train_dataset
        listed = (Path(self.root) / self.kind.list_name.format(part)).is_file()
        # The data set reports a missing training list.
        return self._split(part) if listed or part == 'train' else None

    def _split(self, part: Part, **kwargs: Any) -> Any:
        crop_pct = 1.0 if part == 'train' else EVAL_CROP
        return self.kind(self.root, part, crop_pct=crop_pct, **kwargs, **self.kwargs)


class FMoWSentinelDataModule(FMoWRGBDataModule):
    """LightningDataModule for fMoW-Sentinel, by default SatMAE's ten bands and normalization.

    Values within two standard deviations of the mean are mapped to [0, 1] and the rest is clipped,
    unless ``statistics.clip`` is False.
    """

    published = Statistics(SENTINEL_MEAN, SENTINEL_STD)
    kind = FMoWSentinel
    clip = True

    def __init__(
        self,
        root: PathLike,
        bands: Sequence[str] | None = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12'),
        image_size: int = 96,
        **kwargs: Any,
    ) -> None:
        """Initialize a new FMoWSentinelDataModule instance.

        Args:
            root: Folder of the lists and of `fmow-sentinel`.
            bands: Names of the bands to use, in any order; all 13 if None.
            image_size: Side of the images, pixels.
            **kwargs: Loading, augmentation and statistics; see :class:`TileDataModule`.
        """
        super().__init__(root, bands=bands, image_size=image_size, **kwargs)


class FMoWTemporalDataModule(FMoWRGBDataModule):
    """LightningDataModule for series of fMoW-RGB images; batches carry `timestamps`, shape (B, T, 3).

    Crops and flips are the same for all frames of a series. As in SatMAE, there are no flips by default.
    """

    augmentation = Augment((0.2, 1.0), horizontal_flip=False, vertical_flip=False, quarter_turns=False)
    kind = FMoWTemporal

    def __init__(self, root: PathLike, num_frames: int = 3, **kwargs: Any) -> None:
        """Initialize a new FMoWTemporalDataModule instance.

        Args:
            root: Folder of the lists.
            num_frames: Number of images in a series, T; validation and test always take the same ones.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.
        """
        super().__init__(root, **kwargs)
        self.num_frames = num_frames

    def _split(self, part: Part, **kwargs: Any) -> Any:
        return super()._split(part, num_frames=self.num_frames, random_frames=part == 'train')

    def _make_transform(self, make: Callable[[Tensor, Tensor], Any], mean: Tensor, std: Tensor) -> Any:
        return FramesAsChannels(make(mean.repeat(self.num_frames), std.repeat(self.num_frames)))
