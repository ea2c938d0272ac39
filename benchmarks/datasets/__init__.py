"""Data sets that only the paper's tables read, on the package's base classes."""

from .naip_landcover import NAIPLandCoverDataModule, NAIPLandCoverDataset
from .resisc45 import RESISC45DataModule, RESISC45Dataset
from .spacenet1 import SpaceNet1DataModule, SpaceNet1Dataset
from .wilds import Camelyon17DataModule, Camelyon17Dataset, IWildCamDataModule, IWildCamDataset

__all__ = [
    'Camelyon17DataModule',
    'Camelyon17Dataset',
    'IWildCamDataModule',
    'IWildCamDataset',
    'NAIPLandCoverDataModule',
    'NAIPLandCoverDataset',
    'RESISC45DataModule',
    'RESISC45Dataset',
    'SpaceNet1DataModule',
    'SpaceNet1Dataset',
]
