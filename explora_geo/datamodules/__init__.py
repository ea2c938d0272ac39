"""Data modules: folders of tiles, EuroSAT, and whole scenes."""

from .eurosat import EuroSATDataModule
from .folder import FolderDataModule
from .masks import MaskFolderDataModule
from .scenes import SceneDataModule

__all__ = ['EuroSATDataModule', 'FolderDataModule', 'MaskFolderDataModule', 'SceneDataModule']
