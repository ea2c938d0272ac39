"""Data module for EuroSAT, as JPEG or 13-band tiles."""

from typing import Any

from torch.utils.data import Dataset
from torchgeo.datamodules.eurosat import MEAN, STD

from explora_geo.datamodules.base import Part, TileDataModule
from explora_geo.datamodules.statistics import Statistics
from explora_geo.datasets import EuroSATDataset
from explora_geo.datasets.eurosat import MS_BANDS
from explora_geo.datasets.remote import PathLike


class EuroSATDataModule(TileDataModule):
    """LightningDataModule for EuroSAT as RGB JPEG or 13-band GeoTIFF tiles.

    The layout is that of :class:`~explora_geo.datasets.EuroSATDataset`. A share of the training
    tiles is held out for validation, so that nothing is tuned on the test tiles. By default,
    statistics are TorchGeo's for 13-band tiles and estimated for JPEG.
    """

    kind = EuroSATDataset
    nadir = True

    def __init__(
        self,
        root: PathLike,
        split_file: PathLike | None = None,
        image_size: int = 64,
        val_split: float = 0.1,
        **kwargs: Any,
    ) -> None:
        """Initialize a new EuroSATDataModule instance.

        Args:
            root: Folder of class folders, or of the folders ``train`` and ``test``.
            split_file: JSON object that lists tile names under ``train`` and ``test``.
            image_size: Side of the images, pixels; tiles are 64 pixels wide.
            val_split: Share of the training tiles held out for validation, evenly spaced.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.
        """
        self.held_out = val_split
        super().__init__(root, image_size=image_size, **kwargs)
        self.kwargs['split_file'] = split_file

    def make(self, part: Part) -> Dataset[Any] | None:
        """Make the training or test tiles; the test tiles also serve for prediction."""
        if part == 'val':
            return None
        if part == 'predict':
            return self.test_dataset
        dataset = EuroSATDataset(self.root, part, **self.kwargs)
        if part == 'train' and dataset.file_bands == MS_BANDS:
            self.published = Statistics(MEAN, STD)
        return dataset
