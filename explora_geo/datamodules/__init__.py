"""Data modules: folders of tiles and masks, EuroSAT and fMoW, and whole scenes."""

from .base import Augment, TileDataModule
from .eurosat import EuroSATDataModule
from .fmow import FMoWRGBDataModule, FMoWSentinelDataModule, FMoWTemporalDataModule
from .folder import FolderDataModule, MaskFolderDataModule
from .scenes import SceneDataModule
from .statistics import Statistics

__all__ = [
    'Augment',
    'EuroSATDataModule',
    'FMoWRGBDataModule',
    'FMoWSentinelDataModule',
    'FMoWTemporalDataModule',
    'FolderDataModule',
    'MaskFolderDataModule',
    'SceneDataModule',
    'Statistics',
    'TileDataModule',
]
