"""Data modules: folders of tiles and masks, the papers' data sets, and whole scenes."""

from .eurosat import EuroSATDataModule
from .fmow import FMoWRGBDataModule, FMoWSentinelDataModule, FMoWTemporalDataModule
from .folder import FolderDataModule
from .masks import MaskFolderDataModule
from .scenes import SceneDataModule
from .splits import (
    Camelyon17DataModule,
    IWildCamDataModule,
    NAIPLandCoverDataModule,
    RESISC45DataModule,
    SpaceNet1DataModule,
    SplitDataModule,
)

__all__ = [
    'Camelyon17DataModule',
    'EuroSATDataModule',
    'FMoWRGBDataModule',
    'FMoWSentinelDataModule',
    'FMoWTemporalDataModule',
    'FolderDataModule',
    'IWildCamDataModule',
    'MaskFolderDataModule',
    'NAIPLandCoverDataModule',
    'RESISC45DataModule',
    'SceneDataModule',
    'SpaceNet1DataModule',
    'SplitDataModule',
]
