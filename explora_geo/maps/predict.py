"""Blended predictions of one block of a scene."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio import DatasetReader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from explora_geo.datasets.remote import read_apart
from explora_geo.maps.grid import Box, TileGrid, blending_weights
from explora_geo.maps.scene import Scene

#: From normalized tiles, shape (B, C, T, T), to values of cells, shape (B, K, T / cell, T / cell).
Function = Callable[[Tensor], Tensor]


class Tiles(Dataset[dict[str, Any]]):
    """Normalized tiles of a scene; nodata becomes the mean of its band."""

    def __init__(
        self,
        scene: Scene,
        boxes: list[Box],
        mean: Tensor,
        std: Tensor,
        clip: bool = False,
        source: DatasetReader | None = None,
    ) -> None:
        """Initialize Tiles.

        Args:
            scene: The scene.
            boxes: Windows to read.
            mean: Mean of each band, shape (C,).
            std: Standard deviation of each band, shape (C,).
            clip: Whether these are start and length of a range (mean - 2 std and 4 std), which is cut off.
            source: The scene, open, for this process alone; each opens its own if None.
        """
        self.scene, self.boxes = scene, boxes
        self._files, self._source = ExitStack(), source
        self.mean, self.std, self.clip = mean.view(-1, 1, 1), std.view(-1, 1, 1), clip

    def close(self) -> None:
        """Close the scene."""
        self._files.close()

    def __len__(self) -> int:
        """Number of tiles."""
        return len(self.boxes)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One tile: `image`, shape (C, T, T), its `box`, and whether it is `empty`."""
        pixels, valid = read_apart(self._read, self.boxes[index])
        image = (torch.from_numpy(pixels) - self.mean) / self.std
        if self.clip:
            image = image.clamp(0, 1)
        middle = torch.tensor(0.5 if self.clip else 0.0)
        image = torch.where(torch.from_numpy(valid), image, middle)
        return {'image': image, 'box': torch.tensor(self.boxes[index]), 'empty': not valid.any()}

    def _read(self, box: Box) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if self._source is None:  # not before a worker has started: processes must not share a file
            self._source = self._files.enter_context(self.scene.open())
        return self.scene.read(self._source, box)


def predict_block(
    scene: Scene,
    source: DatasetReader,
    grid: TileGrid,
    block: Box,
    function: Function,
    mean: Tensor,
    std: Tensor,
    *,
    clip: bool = False,
    cell: int = 1,
    batch_size: int = 16,
    workers: int = 0,
    device: torch.device | str = 'cpu',
) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
    """Weighted mean of all tiles that reach into a block.

    Args:
        scene: The scene.
        source: It, open: what GDAL has read for one block serves its neighbors.
        grid: Its tiles.
        block: The block.
        function: The model.
        mean: Mean of each band, shape (C,).
        std: Standard deviation of each band, shape (C,).
        clip: See `Tiles`.
        cell: Pixels along the side of an output cell: 1, or the patch side.
        batch_size: Tiles per call.
        workers: Processes that read tiles.
        device: Where the model is.

    Returns:
        Values of the block's cells, shape (K, H / cell, W / cell), or None if the block holds no data; and
        where there is data, shape (H / cell, W / cell).
    """
    _, valid = scene.read(source, block)
    if cell > 1:
        rows, columns = block.shape
        valid = np.asarray(valid.reshape(rows // cell, cell, columns // cell, cell).any((1, 3)))
    if not valid.any():
        return None, valid
    weights = blending_weights(grid.tile // cell)
    height, width = block.shape[0] // cell, block.shape[1] // cell
    total = np.zeros((height, width), dtype=np.float32)
    sums: NDArray[np.float32] | None = None
    tiles = Tiles(scene, grid.tiles(block), mean, std, clip, None if workers else source)
    for box, values in _predict(tiles, function, batch_size, workers, device):
        if sums is None:
            sums = np.zeros((len(values), height, width), dtype=np.float32)
        inside = Box(*(v // cell for v in _overlap(box, block)))
        top, left = inside.top - block.top // cell, inside.left - block.left // cell
        target = slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1])
        top, left = inside.top - box.top // cell, inside.left - box.left // cell
        part = slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1])
        sums[:, *target] += values[:, *part] * weights[part]
        total[target] += weights[part]
    if sums is None:
        return None, valid
    # Cells of tiles that hold no data were not computed, and are not valid either.
    sums /= np.maximum(total, np.float32(1e-12))
    return sums, valid & (total > 0)


def _predict(
    tiles: Tiles, function: Function, batch_size: int, workers: int, device: torch.device | str
) -> Iterator[tuple[Box, NDArray[np.float32]]]:
    loader: Any = DataLoader(tiles, batch_size, num_workers=workers)
    with closing(tiles):
        for batch in loader:
            kept = ~batch['empty']
            if not kept.any():
                continue
            values = function(batch['image'][kept].to(device)).float().cpu().numpy()
            for box, value in zip(batch['box'][kept].tolist(), values, strict=True):
                yield Box(*box), value


def _overlap(a: Box, b: Box) -> Box:
    return Box(max(a.top, b.top), max(a.left, b.left), min(a.bottom, b.bottom), min(a.right, b.right))
