"""Data modules: folders of tiles and masks, EuroSAT, fMoW and whole scenes."""

from explora_geo.datamodules.base import Augment, TileDataModule
from explora_geo.datamodules.eurosat import EuroSATDataModule
from explora_geo.datamodules.fmow import FMoWRGBDataModule, FMoWSentinelDataModule, FMoWTemporalDataModule
from explora_geo.datamodules.folder import FolderDataModule, MaskFolderDataModule
from explora_geo.datamodules.scenes import SceneDataModule
from explora_geo.datamodules.statistics import Statistics

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
