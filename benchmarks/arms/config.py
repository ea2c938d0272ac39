"""What arms share and how they differ, read from a file."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from explora_geo.demo.run import Recipe

from ..search import recipe_of


@dataclass(frozen=True)
class Setting:
    """What all arms share.

    Attributes:
        model: Backbone name.
        weights: Source: a `WeightsEnum` by name or a file.
        train: Folder of class folders: unlabelled images of the arms, and labels of the probes.
        labels: Labelled images per class for the probes, a quarter of them to choose hyper-parameters with.
        test: Folder of class folders that is only reported.
        image_size: Side of the images, pixels.
        learned_position: Whether position codes train in full training.
        mean: Mean of each band, as in `FolderDataModule`.
        std: Standard deviation of each band, likewise.
        seeds: Runs of every arm.
        budgets: Label budgets of the probes.
        label_seeds: Draws of labels for budgets below all.
        every: Optimiser steps between points of the learning curve.
    """

    model: str
    weights: str
    train: str
    test: str
    labels: int | None = None
    image_size: int = 64
    learned_position: bool = False
    mean: Any = 'auto'
    std: Any = 'auto'
    seeds: int = 3
    budgets: tuple[str, ...] = ('25', 'all')
    label_seeds: int = 5
    every: int = 50


class Arm(NamedTuple):
    """One way to adapt.

    Attributes:
        name: Name in the table.
        recipe: How to adapt, or None for the source as it is.
        scratch: Start from random weights.
    """

    name: str
    recipe: Recipe | None
    scratch: bool = False


def read_arms(path: Path) -> tuple[Setting, dict[str, Arm]]:
    """Read a file of arms.

    Args:
        path: YAML with `setting`, `defaults` and `arms` (name to changed values; `frozen` for the source as
            it is, `weights: null` to start from random weights).

    Returns:
        What arms share, and the arms by name.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a key is unknown.
    """
    if not path.is_file():
        raise FileNotFoundError(f'no file of arms {path}')
    content = yaml.safe_load(path.read_text())
    unknown = set(content['setting']) - {f.name for f in fields(Setting)}
    if unknown:
        raise ValueError(f'{path}: unknown keys {", ".join(sorted(unknown))} in setting')
    setting: dict[str, Any] = dict(content['setting'])
    if 'budgets' in setting:
        setting['budgets'] = tuple(map(str, setting['budgets']))
    arms = {}
    for name, changes in content['arms'].items():
        if changes == 'frozen':
            arms[name] = Arm(name, None)
            continue
        values = {**content.get('defaults', {}), **(changes or {})}
        scratch = values.pop('weights', '') is None
        arms[name] = Arm(name, recipe_of(values, f'{path}, arm {name}'), scratch)
    return Setting(**setting), arms
