"""Data module for whole georeferenced scenes, and their windows.

Windows are counted in whole pixels, because TorchGeo's samplers compare rounded coordinates exactly.
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
    """Random windows of sufficiently large scenes, weighted by scene area."""

    def __init__(self, dataset: SceneDataset, size: int, length: int | None = None) -> None:
        """Initialize RandomWindows.

        Args:
            dataset: Scenes.
            size: Side of a window in pixels.
            length: Windows per epoch; those of a grid over these scenes if None.
        """
        self.size = size
        self.scenes = [scene for scene in _scenes(dataset) if min(scene.height, scene.width) >= size]
        self.length = length or sum(-(-s.height // size) * -(-s.width // size) for s in self.scenes)

    def __len__(self) -> int:
        """Return the number of windows per epoch."""
        return self.length

    def __iter__(self) -> Iterator[GeoSlice]:
        """Draw windows from torch's random state."""
        areas = torch.tensor([float(scene.height * scene.width) for scene in self.scenes])
        for _ in range(self.length):
            scene = self.scenes[int(torch.multinomial(areas, 1))]
            row, column = (int(torch.randint(n - self.size + 1, ())) for n in (scene.height, scene.width))
            yield scene.window(self.size, row, column)


def grid_windows(dataset: SceneDataset, size: int, whole: bool = False) -> list[GeoSlice]:
    """Return a grid of windows with a side of *size* pixels over every scene, row by row from its upper left.

    The last windows may extend beyond a scene's edges; with *whole*, those are left out.
    """
    beyond = size - 1 if whole else 0
    return [
        scene.window(size, row, column)
        for scene in _scenes(dataset)
        for row in range(0, scene.height - beyond, size)
        for column in range(0, scene.width - beyond, size)
    ]


class _Scene(NamedTuple):
    """Rows and columns at the resolution of a data set, upper left corner, pixel size, and time."""

    height: int
    width: int
    left: float
    top: float
    res: tuple[float, float]
    time: slice

    def window(self, size: int, row: int, column: int) -> GeoSlice:
        """Return the square window with the given upper left pixel."""
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

    Training draws random windows from scenes that are large enough, weighted by area; validation and
    prediction lay a grid over each scene. Grid windows carry ``bounds``, shape (B, 4), so that
    predictions can be put back on the map.
    """

    kind = SceneDataset
    nadir = True

    def __init__(
        self,
        # Sequences first, else a list in a configuration would be parsed as the text of one path.
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
            paths: Folders or files of the training scenes, or anything GDAL opens, such as a URL.
            val_paths: The same for validation.
            predict_paths: The same for prediction; *paths* if None.
            file_bands: Names of all bands in file order, e.g. red, green, blue, nir.
            patch_size: Side of a window, pixels.
            length: Windows per training epoch; as many as fit side by side if None.
            res: Pixel size in units of the scenes' coordinates; that of the first scene if None.
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
        """Make the data set of a part; prediction uses the training scenes if no others are given.

        Raises:
            ValueError: If every scene is smaller than a window.
        """
        paths = self.paths.get(part)
        if paths is None:
            return None
        dataset = SceneDataset(paths, **self.kwargs)
        if not grid_windows(dataset, self.patch_size, whole=True):
            raise ValueError(
                f'patch_size={self.patch_size} is larger than every scene '
                f'({list(dataset.index["filepath"])[:3]}); use a smaller patch_size'
            )
        return dataset

    def _samples(self, train: SceneDataset) -> Iterator[dict[str, Any]]:
        # A separate data set, as workers must not inherit files opened here.
        once = SceneDataset(self.root, **{**self.kwargs, 'cache': False}) if self.kwargs['cache'] else train
        windows = grid_windows(once, self.patch_size, whole=True)
        return (once[windows[i]] for i in evenly_spaced(len(windows), SAMPLES))

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move a batch to the device, except ``bounds``, (B, 4), as not every device has float64."""
        kept = {key: value for key, value in batch.items() if key == 'bounds'}
        moved = {key: value for key, value in batch.items() if key != 'bounds'}
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), **kept}

    def _sampler(self, split: str) -> Sampler[GeoSlice] | list[GeoSlice]:
        dataset = getattr(self, f'{split}_dataset')
        if split == 'train':
            return RandomWindows(dataset, self.patch_size, self.length)
        return grid_windows(dataset, self.patch_size)
