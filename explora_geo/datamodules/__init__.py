"""Data modules: folders of tiles, EuroSAT, and whole scenes."""

from .eurosat import EuroSATDataModule
from .folder import FolderDataModule
from .scenes import SceneDataModule

__all__ = ['EuroSATDataModule', 'FolderDataModule', 'SceneDataModule']
