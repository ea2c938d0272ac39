"""Grouped settings of data modules, and the former arguments they replace."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..transforms import ViewsConfig
from .statistics import Statistic, Statistics


@dataclass(frozen=True)
class Augment:
    """Augmentation of training images on the device; None is the data module's own choice.

    Attributes:
        crop_scale: Smallest and largest share of an image's area in a training crop; 0.2 and 1, or 0.5 and 1
            where images have masks.
        horizontal_flip: Whether to mirror training images left to right; yes, but for series.
        vertical_flip: Whether to mirror training images top to bottom; no, but with masks.
        quarter_turns: Whether to turn training images by multiples of 90 degrees; no, but with masks.
        views: Several crops of every training image, under the key ``views``, instead of one; objectives that
            need several bring their own if None.
    """

    crop_scale: tuple[float, float] | None = None
    horizontal_flip: bool | None = None
    vertical_flip: bool | None = None
    quarter_turns: bool | None = None
    views: ViewsConfig | None = None

    def over(self, default: 'Augment') -> 'Augment':
        """These settings, with another's where they are None."""
        return replace(default, **{k: v for k, v in vars(self).items() if v is not None})


def move_former(
    augment: Augment | Mapping[str, Any] | None,
    statistics: Statistics | Mapping[str, Any] | None,
    mean: Statistic | None = None,
    std: Statistic | None = None,
    crop_scale: tuple[float, float] | None = None,
    horizontal_flip: bool | None = None,
    vertical_flip: bool | None = None,
    quarter_turns: bool | None = None,
    views: ViewsConfig | None = None,
    normalise: Literal['clip', 'standard'] | None = None,
) -> tuple[Augment, Statistics]:
    """Move former arguments into their groups, with a warning; groups may be mappings."""
    if normalise not in (None, 'clip', 'standard'):
        raise ValueError(f'normalise must be clip or standard, got {normalise!r}.')
    clip = None if normalise is None else normalise == 'clip'
    flips = {'horizontal_flip': horizontal_flip, 'vertical_flip': vertical_flip}
    crops = {'crop_scale': crop_scale, **flips, 'quarter_turns': quarter_turns, 'views': views}
    given: list[dict[str, Any]] = [
        {name: value for name, value in old.items() if value is not None}
        for old in (crops, {'mean': mean, 'std': std, 'clip': clip})
    ]
    if any(given):
        moved = [f'augment.{name}' for name in given[0]] + [f'statistics.{name}' for name in given[1]]
        warnings.warn(
            f'arguments of data modules have moved: write {", ".join(moved)}; the old names end with the '
            'next release',
            FutureWarning,
            stacklevel=4,
        )
    if not isinstance(augment, Augment):
        augment = Augment(**(augment or {}))
    if not isinstance(statistics, Statistics):
        statistics = Statistics(**(statistics or {}))
    return replace(augment, **given[0]), replace(statistics, **given[1])
