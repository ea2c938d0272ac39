"""Datasets: folders of tiles, EuroSAT, and whole scenes."""

from .collate import collate_skipping
from .eurosat import EuroSATDataset
from .folder import FolderDataset
from .masks import MaskFolderDataset
from .scenes import SceneDataset

__all__ = ['EuroSATDataset', 'FolderDataset', 'MaskFolderDataset', 'SceneDataset', 'collate_skipping']
