"""Data module over whole georeferenced scenes, and their windows.

Windows are counted in whole pixels: TorchGeo's samplers compare rounded coordinates exactly.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler
from torchgeo.datasets.utils import GeoSlice

from ..datasets import SceneDataset
from ..datasets.files import evenly_spaced
from ..datasets.remote import PathLike
from .base import Part, TileDataModule
from .statistics import SAMPLES


class RandomWindows(Sampler[GeoSlice]):
    """Random windows of scenes that are large enough, weighted by the scenes' area."""

    def __init__(self, dataset: SceneDataset, size: int, length: int | None = None) -> None:
        """Initialize RandomWindows.

        Args:
            dataset: Scenes.
            size: Side of a window in pixels.
            length: Windows per epoch; as many as a grid over these scenes has if None.
        """
        shapes = {i: _scene_shape(dataset, i) for i in range(len(dataset))}
        self.dataset, self.size = dataset, size
        self.shapes = {i: shape for i, shape in shapes.items() if min(shape) >= size}
        self.length = length or sum(-(-h // size) * -(-w // size) for h, w in self.shapes.values())

    def __len__(self) -> int:
        """Windows per epoch."""
        return self.length

    def __iter__(self) -> Iterator[GeoSlice]:
        """Draw from torch's random state."""
        areas = torch.tensor([float(h * w) for h, w in self.shapes.values()])
        for _ in range(self.length):
            number = list(self.shapes)[int(torch.multinomial(areas, 1))]
            row, column = (int(torch.randint(n - self.size + 1, ())) for n in self.shapes[number])
            yield _window_at(self.dataset, number, self.size, row, column)


class GridWindows(Sampler[GeoSlice]):
    """Windows side by side, row by row over every scene, from its upper left on.

    The last windows may reach over a scene's edges, or with *whole* are left out.
    """

    def __init__(self, dataset: SceneDataset, size: int, whole: bool = False) -> None:
        """Initialize GridWindows of *size* pixels a side."""
        self.dataset, self.size = dataset, size
        beyond = size - 1 if whole else 0
        self.places = [
            (number, row, column)
            for number in range(len(dataset))
            for height, width in [_scene_shape(dataset, number)]
            for row in range(0, height - beyond, size)
            for column in range(0, width - beyond, size)
        ]

    def __len__(self) -> int:
        """Windows of all scenes."""
        return len(self.places)

    def __getitem__(self, position: int) -> GeoSlice:
        """One window."""
        number, row, column = self.places[position]
        return _window_at(self.dataset, number, self.size, row, column)

    def __iter__(self) -> Iterator[GeoSlice]:
        """Row by row, scene by scene."""
        return (self[i] for i in range(len(self)))


def _scene_shape(dataset: SceneDataset, number: int) -> tuple[int, int]:
    """Rows and columns of a scene at the resolution of its dataset."""
    xmin, ymin, xmax, ymax = dataset.index.geometry.iloc[number].bounds
    return round((ymax - ymin) / dataset.res[1]), round((xmax - xmin) / dataset.res[0])


def _window_at(dataset: SceneDataset, number: int, size: int, row: int, column: int) -> GeoSlice:
    """The square window of a scene whose upper left pixel is given."""
    xmin, _, _, ymax = dataset.index.geometry.iloc[number].bounds
    left, top = xmin + column * dataset.res[0], ymax - row * dataset.res[1]
    interval = dataset.index.index[number]
    return (
        slice(left, left + size * dataset.res[0]),
        slice(top - size * dataset.res[1], top),
        slice(interval.left, interval.right),
    )


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
            raise ValueError(f'length must be at least 1 window, got {length}.')
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
        if not len(GridWindows(dataset, self.patch_size, whole=True)):
            raise ValueError(
                f'patch_size={self.patch_size} is larger than every scene '
                f'({list(dataset.index["filepath"])[:3]}); give a smaller patch_size.'
            )
        return dataset

    def _samples(self, train: SceneDataset) -> Iterator[dict[str, Any]]:
        # A data set of its own, as files opened here must not be inherited by workers.
        once = SceneDataset(self.root, **{**self.kwargs, 'cache': False}) if self.kwargs['cache'] else train
        windows = GridWindows(once, self.patch_size, whole=True)
        return (once[windows[i]] for i in evenly_spaced(len(windows), SAMPLES))

    def transfer_batch_to_device(
        self, batch: dict[str, Any], device: torch.device, dataloader_idx: int
    ) -> dict[str, Any]:
        """Move a batch to the device, but for ``bounds``, (B, 4): not every device has float64."""
        kept = {key: value for key, value in batch.items() if key == 'bounds'}
        moved = {key: value for key, value in batch.items() if key != 'bounds'}
        return {**super().transfer_batch_to_device(moved, device, dataloader_idx), **kept}

    def _sampler(self, split: str) -> Sampler[Any]:
        dataset = getattr(self, f'{split}_dataset')
        if split == 'train':
            return RandomWindows(dataset, self.patch_size, self.length)
        return GridWindows(dataset, self.patch_size)
