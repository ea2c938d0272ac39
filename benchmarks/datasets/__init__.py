"""Data sets used only by the paper's tables, built on the package's base classes."""

from .scenes import NAIPLandCoverDataModule, RESISC45DataModule
from .spacenet1 import SpaceNet1DataModule, SpaceNet1Dataset
from .wilds import Camelyon17DataModule, IWildCamDataModule

__all__ = [
    'Camelyon17DataModule',
    'IWildCamDataModule',
    'NAIPLandCoverDataModule',
    'RESISC45DataModule',
    'SpaceNet1DataModule',
    'SpaceNet1Dataset',
]
