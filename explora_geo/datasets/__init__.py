"""Datasets: folders of tiles, EuroSAT, and whole scenes."""

from .collate import collate_skipping
from .eurosat import EuroSATDataset
from .folder import FolderDataset
from .scenes import SceneDataset

__all__ = ['EuroSATDataset', 'FolderDataset', 'SceneDataset', 'collate_skipping']
