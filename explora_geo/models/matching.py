"""Match data to a backbone: the same bands, in the same order, with its normalization."""

from collections.abc import Sequence
from typing import Any, Literal

import torch

from explora_geo.bands import match_bands
from explora_geo.models.normalization import Normalization, describe
from explora_geo.models.vit import ViT


def match_data(datamodule: Any, vit: ViT, statistics: Literal['model', 'data'] | None = None) -> None:
    """Make a data module deliver the bands of a backbone, normalized as its weights expect.

    Our data modules reorder and drop bands, and adopt the statistics of the weights unless given their own.

    Args:
        datamodule: Data module of ours or of TorchGeo, already set up, or None.
        vit: The backbone.
        statistics: Which mean and standard deviation win where they differ; if None, an error.

    Raises:
        ValueError: If bands are missing, or statistics or units conflict with those of the weights.
    """
    if statistics not in ('model', 'data', None):
        raise ValueError(f'statistics must be model or data, got {statistics!r}')
    bands = vit.patch_embed.bands
    if hasattr(datamodule, 'use_bands'):
        datamodule.use_bands(bands)
    elif given := getattr(datamodule, 'bands', None):  # nothing can reorder them
        if match_bands(given, bands) != list(range(len(given))):
            raise ValueError(
                f'the model expects bands {", ".join(bands)}, but the data contains {", ".join(given)}: '
                'select the same bands in the same order'
            )
    stated, own = vit.normalization, normalization_of(datamodule, bands)
    if stated is None or own is None or statistics == 'data':
        return
    ours = hasattr(datamodule, 'use_normalization')
    if ours and (statistics == 'model' or not datamodule.given_statistics):
        if statistics is None and stated.other_units(own.value_range):
            mine, theirs = ('{:g} to {:g}'.format(*n.value_range or (0, 0)) for n in (own, stated))
            raise ValueError(
                f'the data has pixel values of {mine}, but the weights were adapted on {theirs}: convert the '
                'data to the same units, or set statistics to data to normalize with the mean and standard '
                'deviation of the data'
            )
        datamodule.use_normalization(stated.mean, stated.std, stated.clip)
    elif statistics == 'model' or not stated.agrees(own):
        raise ValueError(
            f'the data is normalized by {describe(own, bands)}, but the weights were adapted with '
            f'{describe(stated, bands)}: '
            + ('omit mean and std to use those of the weights, or set' if ours else 'set')
            + ' statistics to data to keep those of the data'
        )


def normalization_of(datamodule: Any, bands: Sequence[str]) -> Normalization | None:
    """Return how a data module of ours or of TorchGeo normalizes these bands, or None if it does not say."""
    values = [getattr(datamodule, name, None) for name in ('mean', 'std')]
    if any(value is None for value in values):
        return None
    mean, std = (torch.as_tensor(v).float().flatten() for v in values)
    if not {len(mean), len(std)} <= {1, len(bands)}:
        return None  # for other bands, or per frame
    return Normalization(
        tuple(mean.expand(len(bands)).tolist()),
        tuple(std.expand(len(bands)).tolist()),
        bool(getattr(datamodule, 'clip', False)),
        getattr(datamodule, 'value_range', None),
    )


def describe_data(datamodule: Any, bands: Sequence[str]) -> dict[str, Any]:
    """Describe the images of a data module as plain values.

    These are the model's `bands` and, where known, the fields of `Normalization`, `classes` and `colors`.
    """
    found: dict[str, Any] = {'bands': list(bands)}
    normalization = normalization_of(datamodule, bands)
    if normalization is not None:
        found |= {k: v for k, v in normalization.to_dict().items() if v}
    for dataset in (getattr(datamodule, f'{part}_dataset', None) for part in ('train', 'val', 'test')):
        dataset = getattr(dataset, 'dataset', dataset)  # unwrap a Subset
        if classes := getattr(dataset, 'classes', None):
            found.setdefault('classes', [str(c) for c in classes])
        if colors := getattr(dataset, 'colors', None):
            found.setdefault('colors', [list(map(int, c)) for c in colors])
    return found


def tile_side(datamodule: Any) -> int | None:
    """Return the shorter side of the training images before resizing, pixels, or None if unknown."""
    sides = [getattr(datamodule, name, None) for name in ('native_side', 'image_size')]
    return min((side for side in sides if isinstance(side, int)), default=None)


def describe_enlarging(datamodule: Any, size: int) -> str:
    """Return a note if images are enlarged to the model's input side `size`, pixels; else an empty string."""
    side = tile_side(datamodule)
    if side is None or side >= size:
        return ''
    return (
        f'images of {side} px are enlarged to {size} px, {(size / side) ** 2:.1f} times the pixels and time '
        f'without added detail: set img_size, or the size of views, closer to {side} px'
    )
