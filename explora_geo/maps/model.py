"""Models as functions from tiles to maps, blended over the blocks of a scene."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio import DatasetReader
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from explora_geo.checkpoints import state_sha256
from explora_geo.datasets.plotting import palette
from explora_geo.datasets.remote import read_apart
from explora_geo.maps.grid import Box, TileGrid, blending_weights
from explora_geo.maps.scene import Scene
from explora_geo.models.normalization import Normalization
from explora_geo.models.readout import to_map
from explora_geo.models.vit import ViT
from explora_geo.trainers import ClassificationTask, RegressionTask, SegmentationTask, load_task

#: Function from normalized tiles, shape (B, C, T, T), to cell values, shape (B, K, T / cell, T / cell).
Function = Callable[[Tensor], Tensor]


class MapModel(NamedTuple):
    """Model prepared for mapping."""

    source: str  # file or name, for messages and tags
    sha256: str  # of the weights
    backbone: ViT  # for patch features
    data: Mapping[str, Any]  # facts about the training images
    function: Function | None = None  # to values per pixel, shape (B, K, T, T); None for a bare backbone
    outputs: int = 0  # values per pixel K
    classes: tuple[str, ...] = ()  # empty for regression
    colors: tuple[tuple[int, ...], ...] = ()  # of the classes

    @property
    def bands(self) -> tuple[str, ...]:
        """Names of the input bands, in order."""
        return self.backbone.patch_embed.bands

    @property
    def tile(self) -> int:
        """Side of the input tiles, pixels."""
        return self.backbone.patch_embed.grid_size[0] * self.backbone.patch_embed.patch_size


def open_model(path: str | Path, device: torch.device | str = 'cpu') -> MapModel:
    """Load a tuned model for mapping; an image-level model predicts one value for all pixels of a tile.

    Args:
        path: `model.safetensors` or a checkpoint of a tuning run.
        device: Device to run on.

    Raises:
        ValueError: If the file is not a tuned model, or is of a kind without maps.
    """
    task = load_task(path).to(device)
    classes: tuple[str, ...] = ()
    if isinstance(task, ClassificationTask | SegmentationTask):
        if task.kind == 'multilabel':
            raise ValueError(f'{path} predicts several labels at once, but a map shows one class per pixel')
        count = 2 if task.kind == 'binary' else task.outputs
        named = task.data.get('classes', [])
        classes = tuple(named if len(named) == count else (f'class {i}' for i in range(count)))
    elif not isinstance(task, RegressionTask):
        raise ValueError(f'{path} contains a {type(task).__name__}, which cannot make a map')

    @torch.no_grad()
    def function(image: Tensor) -> Tensor:
        found = task.predict(task(image))
        if found.ndim == (3 if task.dense else 1):  # binary, or a single number
            found = found.unsqueeze(1)
        if len(classes) == 2 and found.shape[1] == 1:
            found = torch.cat([1 - found, found], dim=1)
        return found if task.dense else found[..., None, None].expand(-1, -1, *image.shape[-2:])

    colors = tuple(tuple(map(int, c)) for c in palette(len(classes), task.data.get('colors', ())))
    sha256, outputs = state_sha256(task.model.state_dict()), len(classes) or task.outputs
    return MapModel(str(path), sha256, task.model.backbone, task.data, function, outputs, classes, colors)


def open_features(vit: ViT, device: torch.device | str = 'cpu', source: str | None = None) -> MapModel:
    """Prepare a backbone without a head for maps of patch features; `source` names its origin."""
    vit.to(device).eval()
    data = {} if vit.normalization is None else vit.normalization.to_dict()
    return MapModel(source or vit.name, state_sha256(vit.state_dict()), vit, data)


def patch_features(vit: ViT) -> Function:
    """Return a function from tiles to maps of slot-averaged patch features, shape (B, D, T / P, T / P)."""
    return torch.no_grad()(lambda image: to_map(vit(image), vit.patch_embed.grid(image), 'mean'))


class _Tiles(Dataset[tuple[Tensor, Tensor]]):
    """Pixels of tiles, shape (C, T, T), and their valid-data masks, shape (T, T)."""

    def __init__(self, scene: Scene, boxes: Sequence[Box], source: DatasetReader | None) -> None:
        self.scene, self.boxes, self.source = scene, boxes, source
        self._files = ExitStack()
        self.close = self._files.close

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        pixels, valid = read_apart(self._read, self.boxes[index])
        return torch.from_numpy(pixels), torch.from_numpy(valid)

    def _read(self, box: Box) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        if self.source is None:  # opened in the worker: processes must not share a file
            self.source = self._files.enter_context(self.scene.open())
        return self.scene.read(self.source, box)


@dataclass(frozen=True)
class Blend:
    """Prediction of scene blocks as the weighted mean of all intersecting tiles."""

    scene: Scene
    grid: TileGrid
    function: Function
    normalization: Normalization  # of the input pixels
    batch_size: int = 16  # tiles per call
    workers: int = 0  # data-loading processes
    device: torch.device | str = 'cpu'  # device of the model

    def predict(
        self, source: DatasetReader, block: Box
    ) -> tuple[NDArray[np.float32] | None, NDArray[np.bool_]]:
        """Predict the cells of a block, shape (K, h, w), with their valid-data mask, shape (h, w).

        Values are None without data. Keep `source` open between blocks to make use of GDAL's cache.
        """
        cell = self.grid.cell
        _, valid = self.scene.read(source, block)
        rows, columns = (n // cell for n in block.shape)
        valid = np.asarray(valid.reshape(rows, cell, columns, cell).any((1, 3)))
        if not valid.any():
            return None, valid
        weights = blending_weights(self.grid.tile // cell)
        total = np.zeros((rows, columns), dtype=np.float32)
        sums: NDArray[np.float32] | None = None
        boxes, here = self.grid.tiles(block), self.grid.cells(block)
        with closing(_Tiles(self.scene, boxes, None if self.workers else source)) as tiles:
            loader: Any = DataLoader(tiles, self.batch_size, num_workers=self.workers)
            for number, (pixels, data) in enumerate(loader):
                kept = data.flatten(1).any(1)
                if not kept.any():
                    continue
                values = self._run(pixels[kept], data[kept])
                if sums is None:
                    sums = np.zeros((values.shape[1], rows, columns), dtype=np.float32)
                for index, value in zip(kept.nonzero()[:, 0].tolist(), values, strict=True):
                    tile = self.grid.cells(boxes[number * self.batch_size + index])
                    target, part = tile.within(here), here.within(tile)
                    sums[:, *target] += value[:, *part] * weights[part]
                    total[target] += weights[part]
        if sums is None:
            return None, valid
        # Cells covered only by tiles without data were not computed, and are not valid.
        sums /= np.maximum(total, np.float32(1e-12))
        return sums, valid & (total > 0)

    def _run(self, pixels: Tensor, data: Tensor) -> NDArray[np.float32]:
        """Normalize tiles, set nodata pixels to the band mean, and run the model."""
        used = self.normalization
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (used.mean, used.std))
        image = (pixels - mean) / std
        if used.clip:
            image = image.clamp(0, 1)
        image = image.where(data[:, None], torch.tensor(0.5 if used.clip else 0.0))
        return self.function(image.to(self.device)).float().cpu().numpy()
