"""Datasets: folders of tiles, EuroSAT, Functional Map of the World, and whole scenes."""

from .collate import collate_skipping
from .eurosat import EuroSATDataset
from .fmow import FMoWRGB, FMoWSentinel, FMoWTemporal
from .folder import FolderDataset
from .masks import MaskFolderDataset
from .scenes import SceneDataset

__all__ = [
    'EuroSATDataset',
    'FMoWRGB',
    'FMoWSentinel',
    'FMoWTemporal',
    'FolderDataset',
    'MaskFolderDataset',
    'SceneDataset',
    'collate_skipping',
]
