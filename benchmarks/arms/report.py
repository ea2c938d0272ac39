"""Table and learning curves of arms."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from explora_geo.checkpoints import atomic_path
from explora_geo.evaluation import mean_interval
from explora_geo.models import create_vit

from .config import Arm, Setting

_METHODS = {'logistic': 'linear probe', 'knn': 'k-NN'}


def markdown(
    rows: Mapping[str, Sequence[dict[str, Any]]], arms: Mapping[str, Arm], setting: Setting, config: Path
) -> str:
    """Table of the arms.

    Args:
        rows: Results by arm, one per seed.
        arms: Arms by name.
        setting: What they share.
        config: File they come from.

    Returns:
        Markdown.
    """
    first = next(iter(rows.values()))[0]
    names = list(first['scores'])
    titles = [f'{_METHODS[method]}, {budget}' for method, budget in (n.split(', ') for n in names)]
    with torch.device('meta'):
        size = create_vit(setting.model, img_size=setting.image_size).num_parameters
    lines = [
        f'# Arms {config.stem}',
        '',
        f'Made by `explora-bench arms {config}` on {first["device"]}. {setting.model} '
        f'({size / 1e6:.1f} M parameters) from {setting.weights}, images of {setting.image_size} px. Test '
        f'accuracy in %, mean and 95 % interval over the seeds of training; labels: a number per '
        f'class ({setting.label_seeds} draws each) or all. Features are the class token or the mean patch '
        'token of the last block, as validation chose.',
        '',
        f'| arm | adaptation | steps | seeds | trains, M | {" | ".join(titles)} | s/step | peak, MB |',
        '|' + '---|' * (7 + len(titles)),
    ]
    for name, found in rows.items():
        recipe = arms[name].recipe
        cells = [name, '-', '0', '-', '0']
        if recipe:
            cells = [name, recipe.name, str(recipe.steps), str(len(found))]
        cells += [f'{found[0]["trainable"] / 1e6:.2f}'] if recipe else []
        cells += [_cell([row['scores'][n] for row in found]) for n in names]
        for key, scale, form in (('seconds_per_step', 1, '.3f'), ('peak_memory', 1e-6, '.0f')):
            values = [scale * row[key] for row in found if key in row]
            cells.append(format(statistics.median(values), form) if values else '-')
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join([*lines, ''])


def _cell(values: Sequence[float]) -> str:
    return str(mean_interval(values)) if len(values) > 1 else f'{100 * values[0]:.1f}'


def draw(path: Path, rows: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    """Learning curves: k-NN accuracy over steps, a line per arm with the range of its seeds."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout='constrained')
    for name, found in rows.items():
        curves = np.array([[y for _, y in row['curve']] for row in found])
        steps = [x for x, _ in found[0]['curve']]
        if len(steps) == 1:
            axis.axhline(100 * curves.mean(), color='grey', linestyle='--', label=name)
            continue
        (line,) = axis.plot(steps, 100 * curves.mean(0), marker='o', markersize=3, label=name)
        axis.fill_between(steps, 100 * curves.min(0), 100 * curves.max(0), alpha=0.2, color=line.get_color())
    axis.set_xlabel('optimiser steps')
    axis.set_ylabel('k-NN accuracy, 25 labels a class, %')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format='png')
    plt.close(figure)
