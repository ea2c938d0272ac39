"""Data modules: folders of tiles and masks, EuroSAT and fMoW, and whole scenes."""

from .eurosat import EuroSATDataModule
from .fmow import FMoWRGBDataModule, FMoWSentinelDataModule, FMoWTemporalDataModule
from .folder import FolderDataModule
from .masks import MaskFolderDataModule
from .scenes import SceneDataModule
from .splits import SplitDataModule

__all__ = [
    'EuroSATDataModule',
    'FMoWRGBDataModule',
    'FMoWSentinelDataModule',
    'FMoWTemporalDataModule',
    'FolderDataModule',
    'MaskFolderDataModule',
    'SceneDataModule',
    'SplitDataModule',
]
