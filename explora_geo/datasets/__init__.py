"""Datasets: folders of tiles and masks, EuroSAT, fMoW and whole scenes."""

from explora_geo.datasets.base import TileDataset, collate_skipping
from explora_geo.datasets.eurosat import EuroSATDataset
from explora_geo.datasets.fmow import FMoWRGB, FMoWSentinel, FMoWTemporal
from explora_geo.datasets.folder import FolderDataset
from explora_geo.datasets.masks import MaskFolderDataset
from explora_geo.datasets.packed import PackedDataset
from explora_geo.datasets.plotting import plot_rows
from explora_geo.datasets.scenes import SceneDataset

__all__ = [
    'EuroSATDataset',
    'FMoWRGB',
    'FMoWSentinel',
    'FMoWTemporal',
    'FolderDataset',
    'MaskFolderDataset',
    'PackedDataset',
    'SceneDataset',
    'TileDataset',
    'collate_skipping',
    'plot_rows',
]
