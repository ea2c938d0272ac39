"""Data module over whole georeferenced scenes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from ..datasets import SceneDataset
from ..datasets.files import PathLike
from ..transforms import ViewsConfig
from .base import ArchiveDataModule
from .statistics import Statistic, usable
from .windows import GridWindows, RandomWindows, sample_windows, whole_windows


class SceneDataModule(ArchiveDataModule):
    """LightningDataModule for georeferenced scenes, cut into windows while training.

    Training draws windows at random from scenes that are as large, weighted by their area; validation and
    prediction lay a grid over each scene. Grid windows carry ``bounds``, shape (B, 4), so that what is
    predicted can be put back on the map.
    """

    nadir = True

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        val_paths: PathLike | Sequence[PathLike] | None = None,
        predict_paths: PathLike | Sequence[PathLike] | None = None,
        bands: Sequence[str] | None = None,
        file_bands: Sequence[str] | None = None,
        patch_size: int = 224,
        length: int | None = None,
        res: float | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        mean: Statistic = 'auto',
        std: Statistic = 'auto',
        crop_scale: tuple[float, float] = (0.2, 1.0),
        horizontal_flip: bool = True,
        vertical_flip: bool = False,
        quarter_turns: bool = False,
        views: ViewsConfig | None = None,
        strict: bool = False,
        cache: bool = False,
    ) -> None:
        """Initialize a new SceneDataModule instance.

        Args:
            paths: Folders or files of the training scenes, or whatever GDAL opens, such as a URL.
            val_paths: The same for validation.
            predict_paths: The same for prediction; *paths* if None.
            bands: Names of the bands to use, in any order; all bands if None.
            file_bands: Names of all bands in file order, e.g. red, green, blue, nir.
            patch_size: Side of a window in pixels.
            length: Windows per training epoch; as many as fit side by side if None.
            res: Size of a pixel in units of the scenes' coordinates; as in the first scene if
                None.
            batch_size: Size of each mini-batch.
            num_workers: Number of processes that load data.
            mean: Mean of each band in units of the files: by band name, in the order of *bands*,
                ``'imagenet'`` (red, green and blue from 0 to 255) or ``'auto'``, estimated from
                up to 512 evenly spaced training windows.
            std: Standard deviation of each band, likewise.
            crop_scale: Smallest and largest share of a window's area in a training crop.
            horizontal_flip: Whether to mirror training windows left to right.
            vertical_flip: Whether to mirror training windows top to bottom.
            quarter_turns: Whether to turn training windows by multiples of 90 degrees.
            views: Several crops of every training image, under the key ``views``, instead of one;
                objectives that need several bring their own if None.
            strict: Whether to raise on a scene or window that cannot be used instead of leaving
                it out.
            cache: Whether to keep files open between windows.

        Raises:
            ValueError: If an argument is out of range.
        """
        if length is not None and length < 1:
            raise ValueError(f'length must be at least 1 window, got {length}.')
        super().__init__(
            SceneDataset,
            patch_size,
            batch_size,
            num_workers,
            mean,
            std,
            crop_scale,
            horizontal_flip,
            vertical_flip,
            quarter_turns,
            views,
            bands=bands,
            file_bands=file_bands,
            res=res,
            strict=strict,
            cache=cache,
        )
        self.paths = paths
        self.val_paths = val_paths
        self.predict_paths = predict_paths
        self.patch_size = patch_size
        self.length = length

    def setup(self, stage: str) -> None:
        """Set up datasets, and the statistics of the bands.

        Args:
            stage: Either 'fit', 'validate', 'test', or 'predict'.

        Raises:
            ValueError: If no scene is as large as a window.
        """
        if self.train_dataset is None:
            train = SceneDataset(self.paths, **self.kwargs)
            self._check_size(train)
            # A dataset of its own, as files opened here must not be inherited by workers.
            once = SceneDataset(self.paths, **{**self.kwargs, 'cache': False})
            self._set_statistics(train.bands, usable(sample_windows(once, self.patch_size), self.paths))
            # `dataset` is what `plot` of the base class shows.
            self.dataset = self.train_dataset = train
        if stage in {'fit', 'validate'} and self.val_paths is not None and not self.val_dataset:
            val = SceneDataset(self.val_paths, **self.kwargs)
            self._check_size(val)
            self.val_dataset = val
        if stage == 'predict':
            paths = self.paths if self.predict_paths is None else self.predict_paths
            predict = SceneDataset(paths, **self.kwargs)
            self._check_size(predict)
            self.predict_dataset = predict

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

    def _check_size(self, dataset: SceneDataset) -> None:
        if not any(whole_windows(dataset, i, self.patch_size) for i in range(len(dataset))):
            raise ValueError(
                f'patch_size={self.patch_size} is larger than every scene '
                f'({list(dataset.index["filepath"])[:3]}); give a smaller patch_size.'
            )
