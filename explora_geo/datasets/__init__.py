"""Datasets: folders of tiles and masks, the papers' data sets, and whole scenes."""

from .collate import collate_skipping
from .eurosat import EuroSATDataset
from .fmow import FMoWRGB, FMoWSentinel, FMoWTemporal
from .folder import FolderDataset
from .listed import ListedDataset
from .masks import MaskFolderDataset
from .naip_landcover import NAIPLandCoverDataset
from .packed import PackedDataset
from .plotting import plot_rows
from .resisc45 import RESISC45Dataset
from .scenes import SceneDataset
from .spacenet1 import SpaceNet1Dataset
from .wilds import Camelyon17Dataset, IWildCamDataset

__all__ = [
    'Camelyon17Dataset',
    'EuroSATDataset',
    'FMoWRGB',
    'FMoWSentinel',
    'FMoWTemporal',
    'FolderDataset',
    'IWildCamDataset',
    'ListedDataset',
    'MaskFolderDataset',
    'NAIPLandCoverDataset',
    'PackedDataset',
    'RESISC45Dataset',
    'SceneDataset',
    'SpaceNet1Dataset',
    'collate_skipping',
    'plot_rows',
]
