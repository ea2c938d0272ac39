"""Data module over whole georeferenced scenes, and their windows.

Windows are counted in whole pixels: TorchGeo's samplers compare rounded coordinates exactly.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Sampler
from torchgeo.datasets.utils import GeoSlice

from explora_geo.datamodules.base import Part, TileDataModule
from explora_geo.datamodules.statistics import SAMPLES
from explora_geo.datasets import SceneDataset
from explora_geo.datasets.files import evenly_spaced
from explora_geo.datasets.remote import PathLike


class RandomWindows(Sampler[GeoSlice]):
    """Random windows of scenes that are large enough, weighted by the scenes' area."""

    def __init__(self, dataset: SceneDataset, size: int, length: int | None = None) -> None:
        """Initialize RandomWindows.

        Args:
            dataset: Scenes.
            size: Side of a window in pixels.
            length: Windows per epoch; as many as a grid over these scenes has if None.
        """
        self.size = size
        self.scenes = [scene for scene in _scenes(dataset) if min(scene.height, scene.width) >= size]
        self.length = length or sum(-(-s.height // size) * -(-s.width // size) for s in self.scenes)

    def __len__(self) -> int:
        """Windows per epoch."""
        return self.length

    def __iter__(self) -> Iterator[GeoSlice]:
        """Draw from torch's random state."""
        areas = torch.tensor([float(scene.height * scene.width) for scene in self.scenes])
        for _ in range(self.length):
            scene = self.scenes[int(torch.multinomial(areas, 1))]
            row, column = (int(torch.randint(n - self.size + 1, ())) for n in (scene.height, scene.width))
            yield scene.window(self.size, row, column)


def grid_windows(dataset: SceneDataset, size: int, whole: bool = False) -> list[GeoSlice]:
    """Windows of *size* pixels a side, side by side, row by row over every scene, from its upper left on.

    The last windows may reach over a scene's edges, or with *whole* are left out.
    """
    beyond = size - 1 if whole else 0
    return [
        scene.window(size, row, column)
        for scene in _scenes(dataset)
        for row in range(0, scene.height - beyond, size)
        for column in range(0, scene.width - beyond, size)
    ]


class _Scene(NamedTuple):
    """Rows and columns at the resolution of a data set, upper left corner, size of a pixel, and time."""

    height: int
    width: int
    left: float
    top: float
    res: tuple[float, float]
    time: slice

    def window(self, size: int, row: int, column: int) -> GeoSlice:
        """The square window whose upper left pixel is given."""
        x, y = self.res
        left, top = self.left + column * x, self.top - row * y
        return slice(left, left + size * x), slice(top - size * y, top), self.time


def _scenes(dataset: SceneDataset) -> Iterator[_Scene]:
    x, y = dataset.res
    for place, time in zip(dataset.index.geometry, dataset.index.index, strict=True):
        left, bottom, right, top = place.bounds
        size = round((top - bottom) / y), round((right - left) / x)
        yield _Scene(*size, left, top, (x, y), slice(time.left, time.right))


class SceneDataModule(TileDataModule):
    """LightningDataModule for georeferenced scenes, cut into windows while training.

    Training draws windows at random from scenes that are as large, weighted by their area; validation and
    prediction lay a grid over each scene. Grid windows carry ``bounds``, shape (B, 4), so that what is
    predicted can be put back on the map.
    """

    kind = SceneDataset
    nadir = True

    def __init__(
        self,
        # Sequences first: of a configuration, a list would be taken for the text of one path.
        paths: Sequence[PathLike] | PathLike,
        val_paths: Sequence[PathLike] | PathLike | None = None,
        predict_paths: Sequence[PathLike] | PathLike | None = None,
        file_bands: Sequence[str] | None = None,
        patch_size: int = 224,
        length: int | None = None,
        res: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Initialize a new SceneDataModule instance.

        Args:
            paths: Folders or files of the training scenes, or whatever GDAL opens, such as a URL.
            val_paths: The same for validation.
            predict_paths: The same for prediction; *paths* if None.
            file_bands: Names of all bands in file order, e.g. red, green, blue, nir.
            patch_size: Side of a window, pixels.
            length: Windows per training epoch; as many as fit side by side if None.
            res: Size of a pixel in units of the scenes' coordinates; as in the first scene if None.
            **kwargs: Images, loading, augmentation and statistics; see :class:`TileDataModule`.

        Raises:
            ValueError: If an argument is out of range.
        """
        if length is not None and length < 1:
            raise ValueError(f'length must be at least 1 window, got {length}')
        super().__init__(paths, image_size=patch_size, **kwargs)
        del self.kwargs['size']  # windows are cut to size by the sampler
        self.kwargs |= {'file_bands': file_bands, 'res': res}
        self.paths = {'train': paths, 'val': val_paths, 'predict': predict_paths or paths}
        self.patch_size, self.length = patch_size, length

    def make(self, part: Part) -> SceneDataset | None:
        """The scenes of a part; those of training to predict if no others are given.

        Raises:
            ValueError: If no scene is as large as a window.
        """
        paths = self.paths.get(part)
        if paths is None:
            return None
        dataset = SceneDataset(paths, **self.kwargs)
        if not grid_windows(dataset, self.patch_size, whole=True):
            raise ValueError(
                f'patch_size={self.patch_size} is larger than every scene '
                f'({list(dataset.index["filepath"])[:3]}); give a smaller patch_size'
            )
        return dataset

    def _samples(self, train: SceneDataset) -> Iterator[dict[str, Any]]:
        # A data set of its own, as files opened here must not be inherited by workers.
        once = SceneDataset(self.root, **{**self.kwargs, 'cache': False}) if self.kwargs['cache'] else train
        windows = grid_windows(once, self.patch_size, whole=True)
        return (once[windows[i]] for i in evenly_spaced(len(windows), SAMPLES))

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move a batch to the device, but for ``bounds``, (B, 4): not every device has float64."""
        kept = {key: value for key, value in batch.items() if key == 'bounds'}
        moved = {key: value for key, value in batch.items() if key != 'bounds'}
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), **kept}

    def _sampler(self, split: str) -> Sampler[GeoSlice] | list[GeoSlice]:
        dataset = getattr(self, f'{split}_dataset')
        if split == 'train':
            return RandomWindows(dataset, self.patch_size, self.length)
        return grid_windows(dataset, self.patch_size)
