"""Data module for EuroSAT, as JPEG or 13-band tiles."""

from collections.abc import Sequence
from typing import Any, Literal

from torchgeo.datamodules.eurosat import MEAN, STD

from ..datasets import EuroSATDataset, FolderDataset
from ..datasets.eurosat import MS_BANDS
from ..datasets.files import PathLike
from ..transforms import ViewsConfig
from .folder import FolderDataModule
from .statistics import Statistic


class EuroSATDataModule(FolderDataModule):
    """LightningDataModule for EuroSAT's red, green and blue JPEG or 13-band GeoTIFF tiles.

    The layout is that of :class:`~explora_geo.datasets.EuroSATDataset`. A share of the training
    tiles is held out for validation, so that nothing is chosen on the test tiles.
    """

    nadir = True

    def __init__(
        self,
        root: PathLike,
        split_file: PathLike | None = None,
        bands: Sequence[str] | None = None,
        image_size: int = 64,
        batch_size: int = 64,
        num_workers: int = 0,
        mean: Statistic = 'auto',
        std: Statistic = 'auto',
        crop_scale: tuple[float, float] = (0.2, 1.0),
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        quarter_turns: bool = False,
        views: ViewsConfig | None = None,
        val_split: float = 0.1,
        strict: bool = False,
        cache: bool = False,
    ) -> None:
        """Initialize a new EuroSATDataModule instance.

        Args:
            root: Folder of class folders, or of the folders ``train`` and ``test``.
            split_file: JSON object that lists tile names under ``train`` and ``test``.
            bands: Names of the bands to use, in any order; all bands if None.
            image_size: Side of the images; tiles have 64 pixels.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            mean: Mean of each band in units of the files: by band name, in the order of *bands*,
                ``'imagenet'`` (JPEG tiles only) or ``'auto'``: TorchGeo's published values for
                13-band tiles, estimated from up to 512 training tiles for JPEG.
            std: Standard deviation of each band, likewise.
            crop_scale: Smallest and largest share of an image's area in a training crop.
            horizontal_flip: Whether to mirror training images left to right.
            vertical_flip: Whether to mirror training images top to bottom.
            quarter_turns: Whether to turn training images by multiples of 90 degrees.
            views: Several crops of every training image, under the key ``views``, instead of one;
                objectives that need several bring their own if None.
            val_split: Share of the training tiles held out for validation, evenly spaced.
            strict: Whether to raise on a tile that cannot be used instead of skipping it.
            cache: Whether to keep decoded tiles in memory; each worker keeps its own.

        Raises:
            ValueError: If an argument is out of range.
        """
        super().__init__(
            root,
            bands=bands,
            image_size=image_size,
            batch_size=batch_size,
            num_workers=num_workers,
            mean=mean,
            std=std,
            crop_scale=crop_scale,
            horizontal_flip=horizontal_flip,
            vertical_flip=vertical_flip,
            quarter_turns=quarter_turns,
            views=views,
            val_split=val_split,
            strict=strict,
            cache=cache,
        )
        self.dataset_class = EuroSATDataset
        self.split_file = split_file
        self.kwargs: dict[str, Any] = {
            'bands': bands,
            'split_file': split_file,
            'size': image_size,
            'strict': strict,
            'cache': cache,
        }

    def _make_dataset(self, split: Literal['train', 'val', 'test']) -> FolderDataset | None:
        return None if split == 'val' else EuroSATDataset(self.root, split, **self.kwargs)

    def _published(self, dataset: FolderDataset) -> tuple[Statistic | None, Statistic | None]:
        return (MEAN, STD) if dataset.file_bands == MS_BANDS else (None, None)
