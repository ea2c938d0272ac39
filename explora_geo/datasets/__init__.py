"""Datasets: folders of tiles and masks, EuroSAT and fMoW, and whole scenes."""

from .base import TileDataset, collate_skipping
from .eurosat import EuroSATDataset
from .fmow import FMoWRGB, FMoWSentinel, FMoWTemporal
from .folder import FolderDataset
from .masks import MaskFolderDataset
from .packed import PackedDataset
from .plotting import plot_rows
from .scenes import SceneDataset

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
