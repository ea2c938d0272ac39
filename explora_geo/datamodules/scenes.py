"""Data module over whole georeferenced scenes."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from ..datasets import SceneDataset
from ..datasets.files import PathLike
from .base import Part, TileDataModule
from .windows import GridWindows, RandomWindows, sample_windows, whole_windows


class SceneDataModule(TileDataModule):
    """LightningDataModule for georeferenced scenes, cut into windows while training.

    Training draws windows at random from scenes that are as large, weighted by their area; validation and
    prediction lay a grid over each scene. Grid windows carry ``bounds``, shape (B, 4), so that what is
    predicted can be put back on the map.
    """

    nadir = True

    def __init__(
        self,
        # Sequences first: of a configuration, a list would be taken for the text of one path.
        paths: Sequence[PathLike] | PathLike,
        val_paths: Sequence[PathLike] | PathLike | None = None,
        predict_paths: Sequence[PathLike] | PathLike | None = None,
        bands: Sequence[str] | None = None,
        file_bands: Sequence[str] | None = None,
        patch_size: int = 224,
        length: int | None = None,
        res: float | None = None,
        cache: bool = False,
        **kwargs: Any,
    ) -> None:
        """Initialize a new SceneDataModule instance.

        Args:
            paths: Folders or files of the training scenes, or whatever GDAL opens, such as a URL.
            val_paths: The same for validation.
            predict_paths: The same for prediction; *paths* if None.
            bands: Names of the bands to use, in any order; all bands if None.
            file_bands: Names of all bands in file order, e.g. red, green, blue, nir.
            patch_size: Side of a window, pixels.
            length: Windows per training epoch; as many as fit side by side if None.
            res: Size of a pixel in units of the scenes' coordinates; as in the first scene if None.
            cache: Whether to keep files open between windows.
            **kwargs: Loading, augmentation and statistics; see :class:`TileDataModule`.

        Raises:
            ValueError: If an argument is out of range.
        """
        if length is not None and length < 1:
            raise ValueError(f'length must be at least 1 window, got {length}.')
        dataset = {'file_bands': file_bands, 'res': res, 'cache': cache}
        super().__init__(SceneDataset, paths, bands, image_size=patch_size, dataset=dataset, **kwargs)
        del self.kwargs['size']  # windows are cut to size by the sampler
        self.paths = {'train': paths, 'val': val_paths, 'predict': predict_paths}
        self.patch_size, self.length = patch_size, length

    def make(self, part: Part) -> SceneDataset | None:
        """The scenes of a part; those of training to predict if no others are given.

        Raises:
            ValueError: If no scene is as large as a window.
        """
        paths = self.paths.get(part)
        if part == 'predict' and paths is None:
            paths = self.root
        if paths is None:
            return None
        dataset = SceneDataset(paths, **self.kwargs)
        if not any(whole_windows(dataset, i, self.patch_size) for i in range(len(dataset))):
            raise ValueError(
                f'patch_size={self.patch_size} is larger than every scene '
                f'({list(dataset.index["filepath"])[:3]}); give a smaller patch_size.'
            )
        return dataset

    def _samples(self, train: SceneDataset) -> Iterator[dict[str, Any]]:
        # A data set of its own, as files opened here must not be inherited by workers.
        once = SceneDataset(self.root, **{**self.kwargs, 'cache': False}) if self.kwargs['cache'] else train
        return sample_windows(once, self.patch_size)

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move a batch to the device, except for its map coordinates.

        Args:
            batch: Batch with ``image``, shape (B, C, H, W), and ``bounds``, shape (B, 4).
            device: The target device.
            dataloader_idx: The index of the loader to which the batch belongs.

        Returns:
            The batch on the device; ``bounds`` stays, as not every device has float64.
        """
        kept = {key: value for key, value in batch.items() if key == 'bounds'}
        moved = {key: value for key, value in batch.items() if key != 'bounds'}
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), **kept}

    def _sampler(self, split: str) -> Sampler[Any]:
        dataset = getattr(self, f'{split}_dataset')
        if split == 'train':
            return RandomWindows(dataset, self.patch_size, self.length)
        return GridWindows(dataset, self.patch_size)
