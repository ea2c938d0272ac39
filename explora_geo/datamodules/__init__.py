"""Data modules: folders of tiles, EuroSAT, Functional Map of the World, and whole scenes."""

from .eurosat import EuroSATDataModule
from .fmow import FMoWRGBDataModule, FMoWSentinelDataModule, FMoWTemporalDataModule
from .folder import FolderDataModule
from .masks import MaskFolderDataModule
from .scenes import SceneDataModule

__all__ = [
    'EuroSATDataModule',
    'FMoWRGBDataModule',
    'FMoWSentinelDataModule',
    'FMoWTemporalDataModule',
    'FolderDataModule',
    'MaskFolderDataModule',
    'SceneDataModule',
]
