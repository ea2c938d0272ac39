"""Windows of scenes in whole pixels: TorchGeo's samplers compare rounded coordinates exactly."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import torch
from torch.utils.data import Sampler
from torchgeo.datasets.utils import GeoSlice

from ..datasets import SceneDataset
from ..datasets.files import evenly_spaced
from .statistics import SAMPLES


def scene_shape(dataset: SceneDataset, number: int) -> tuple[int, int]:
    """Rows and columns of a scene at the resolution of its dataset."""
    xmin, ymin, xmax, ymax = dataset.index.geometry.iloc[number].bounds
    return round((ymax - ymin) / dataset.res[1]), round((xmax - xmin) / dataset.res[0])


def window_at(dataset: SceneDataset, number: int, size: int, row: int, column: int) -> GeoSlice:
    """The square window of a scene whose upper left pixel is given."""
    xmin, _, _, ymax = dataset.index.geometry.iloc[number].bounds
    left, top = xmin + column * dataset.res[0], ymax - row * dataset.res[1]
    interval = dataset.index.index[number]
    return (
        slice(left, left + size * dataset.res[0]),
        slice(top - size * dataset.res[1], top),
        slice(interval.left, interval.right),
    )


class RandomWindows(Sampler[GeoSlice]):
    """Random windows of scenes that are large enough, weighted by the scenes' area."""

    def __init__(self, dataset: SceneDataset, size: int, length: int | None = None) -> None:
        """Initialize RandomWindows.

        Args:
            dataset: Scenes.
            size: Side of a window in pixels.
            length: Windows per epoch; as many as a grid over these scenes has if None.
        """
        shapes = {i: scene_shape(dataset, i) for i in range(len(dataset))}
        self.dataset, self.size = dataset, size
        self.shapes = {i: shape for i, shape in shapes.items() if min(shape) >= size}
        self.length = length or sum(-(-h // size) * -(-w // size) for h, w in self.shapes.values())

    def __len__(self) -> int:
        """Windows per epoch."""
        return self.length

    def __iter__(self) -> Iterator[GeoSlice]:
        """Draw from torch's random state."""
        numbers = list(self.shapes)
        areas = torch.tensor([float(h * w) for h, w in self.shapes.values()])
        for _ in range(len(self)):
            number = numbers[int(torch.multinomial(areas, 1))]
            row, column = (int(torch.randint(n - self.size + 1, ())) for n in self.shapes[number])
            yield window_at(self.dataset, number, self.size, row, column)


class GridWindows(Sampler[GeoSlice]):
    """Windows side by side over every scene, from its upper left on; the last may reach over its edges."""

    def __init__(self, dataset: SceneDataset, size: int) -> None:
        """Initialize GridWindows.

        Args:
            dataset: Scenes.
            size: Side of a window in pixels.
        """
        self.dataset, self.size = dataset, size
        self.places = [
            (number, row, column)
            for number in range(len(dataset))
            for shape in [scene_shape(dataset, number)]
            for row in range(0, shape[0], size)
            for column in range(0, shape[1], size)
        ]

    def __len__(self) -> int:
        """Windows of all scenes."""
        return len(self.places)

    def __iter__(self) -> Iterator[GeoSlice]:
        """Row by row, scene by scene."""
        for number, row, column in self.places:
            yield window_at(self.dataset, number, self.size, row, column)


def whole_windows(dataset: SceneDataset, number: int, size: int) -> int:
    """Count the windows that fit side by side into a scene, without reaching over its edges."""
    rows, columns = scene_shape(dataset, number)
    return (rows // size) * (columns // size)


def sample_windows(dataset: SceneDataset, size: int) -> Iterator[dict[str, Any]]:
    """Read evenly spaced windows that lie inside the scenes, images of shape (C, size, size)."""
    ends = list(accumulate(whole_windows(dataset, i, size) for i in range(len(dataset))))
    scene = 0
    for position in evenly_spaced(ends[-1], SAMPLES):
        while position >= ends[scene]:
            scene += 1
        columns = scene_shape(dataset, scene)[1] // size
        row, column = divmod(position - (ends[scene - 1] if scene else 0), columns)
        yield dataset[window_at(dataset, scene, size, row * size, column * size)]
