"""Models of any kind as functions from tiles to maps."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from explora_geo.checkpoints import state_sha256
from explora_geo.datasets.plot_masks import palette
from explora_geo.maps.predict import Function
from explora_geo.models.pyramid import to_map
from explora_geo.models.vit import ViT
from explora_geo.trainers import ClassificationTask, RegressionTask, SegmentationTask, load_task


class MapModel(NamedTuple):
    """What a map needs of a model.

    Attributes:
        function: From normalized tiles to values per pixel, shape (B, K, T, T).
        backbone: The ViT, for features of patches.
        outputs: Values per pixel K.
        classes: Names of the classes; empty for numbers.
        colours: Their colours.
        bands: Names of the bands, in order.
        tile: Side of its images, pixels.
        data: What is known of its training images.
        sha256: Hash of its weights.
    """

    function: Function | None
    backbone: ViT
    outputs: int
    classes: tuple[str, ...]
    colours: tuple[tuple[int, ...], ...]
    bands: tuple[str, ...]
    tile: int
    data: dict[str, Any]
    sha256: str


def open_model(path: str | Path, device: torch.device | str = 'cpu') -> MapModel:
    """Read a tuned model for mapping.

    A model of whole images gives every pixel of a tile the tile's prediction.

    Args:
        path: `model.safetensors` or a checkpoint of a tuning run.
        device: Where to run it.

    Returns:
        The model.

    Raises:
        ValueError: If it is no tuned model, or of a kind that has no map.
    """
    task = load_task(path)
    classes: tuple[str, ...] = ()
    if isinstance(task, ClassificationTask | SegmentationTask):
        if task.kind == 'multilabel':
            raise ValueError(f'{path} predicts several labels at once: a map shows one class per pixel')
        count = 2 if task.kind == 'binary' else task.outputs
        named = task.data.get('classes', [])
        classes = tuple(named if len(named) == count else (f'class {i}' for i in range(count)))
    elif not isinstance(task, RegressionTask):
        raise ValueError(f'{path} holds a {type(task).__name__}, which has no map')
    task.to(device)
    dense = isinstance(task, SegmentationTask) or (isinstance(task, RegressionTask) and task.dense)

    @torch.no_grad()
    def function(image: Tensor) -> Tensor:
        found = task.predict(task(image))
        if found.ndim == (3 if dense else 1):  # binary, or one number
            found = found.unsqueeze(1)
        if len(classes) == 2 and found.shape[1] == 1:
            found = torch.cat([1 - found, found], dim=1)
        return found if dense else found[..., None, None].expand(-1, -1, *image.shape[-2:])

    vit = task.model.backbone
    colours = tuple(tuple(map(int, c)) for c in palette(len(classes), task.data.get('colours', ())))
    return MapModel(
        function,
        vit,
        len(classes) or task.outputs,
        classes,
        colours,
        vit.patch_embed.bands,
        vit.patch_embed.grid_size[0] * vit.patch_embed.patch_size,
        task.data,
        state_sha256(task.model.state_dict()),
    )


def open_features(vit: ViT, device: torch.device | str = 'cpu') -> MapModel:
    """A backbone without a head, for features of patches alone."""
    vit.to(device)
    tile = vit.patch_embed.grid_size[0] * vit.patch_embed.patch_size
    digest = state_sha256(vit.state_dict())
    data = {} if vit.normalization is None else vit.normalization.to_dict()
    return MapModel(None, vit, 0, (), (), vit.patch_embed.bands, tile, data, digest)


def patch_features(vit: ViT) -> Function:
    """Features of patches as a map, shape (B, D, T / P, T / P); slots are averaged."""

    @torch.no_grad()
    def function(image: Tensor) -> Tensor:
        return to_map(vit(image), vit.patch_embed.grid(image), 'mean')

    return function
