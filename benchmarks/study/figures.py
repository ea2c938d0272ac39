"""Figures of the study: gain from adaptation by length, labels and images, and forgetting."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from explora_geo.checkpoints import atomic_path

from ..tables.summary import Spread
from .report import METHODS, MINUTES, TITLES, Row, combined, pooled, where

ARMS = {
    'explora': 'ExPLoRA [L]-r32',
    'lora': 'LoRA-r32 only',
    'unfreeze': 'unfreezing [L] only',
    'full': 'full training',
    'scratch': 'from scratch, ten times the steps',
}
COLORS = {
    'explora': '#1f7a8c',
    'lora': '#e08e45',
    'unfreeze': '#8d6a9f',
    'full': '#40434e',
    'scratch': '#b23a48',
}
MARKERS = 'os^vDPX*<>hpd'
ARCHIVE = 21_600  # unlabeled training tiles of EuroSAT
SIZES = {'tiny': 'ViT-Ti', 'small': 'ViT-S', 'base': 'ViT-B'}
BUDGETS = {'eurosat': {22: '1 %', 216: '10 %', 0: 'all'}, 'aid': {5: '5 a class', 25: '25 a class', 0: 'all'}}


def _panels(count: int, rows: int = 1) -> tuple[Figure, Sequence[Axes]]:
    size = 4.4 * count, 3.4 * rows
    figure, axes = plt.subplots(rows, count, figsize=size, layout='constrained', squeeze=False)
    for axis in axes.flat:
        axis.axhline(0, color='gray', lw=0.8)
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.3)
    return figure, list(axes.flat)


def _intervals(axis: Axes, x: Sequence[float], found: Sequence[Spread], **style: Any) -> None:
    axis.errorbar(x, [f.mean for f in found], [f.half or 0.0 for f in found], capsize=3, **style)


def _legend_below(figure: Figure, axis: Axes, columns: int, **style: Any) -> None:
    handles, titles = axis.get_legend_handles_labels()
    style |= {'ncols': columns, 'frameon': False, 'fontsize': 8}
    figure.legend(handles, titles, loc='outside lower center', **style)


def _save(figure: Figure, file: Path) -> None:
    with atomic_path(file) as part:
        figure.savefig(part, dpi=100, format='png')
    plt.close(figure)


def default_by_length(rows: list[Row], file: Path) -> None:
    """Plot the gain of `adapt`'s default after 1, 10 and 60 minutes, one panel per domain."""
    domains = ('eurosat', 'aid', 'natural')
    figure, axes = _panels(len(domains))
    for axis, domain in zip(axes, domains, strict=True):
        for method, (name, color) in enumerate(zip(METHODS, list(COLORS.values())[:3], strict=True)):
            of = [where(rows, name='anchor', source='depth6', domain=domain, views=v) for v in MINUTES]
            points = [combined(part, method) for part in of]
            _intervals(axis, list(MINUTES.values()), points, fmt='o-', color=color, label=name)
        axis.set(title=TITLES[domain], xscale='log', xlabel='minutes of two cores', ylabel='gain, points')
        axis.set_xticks(list(MINUTES.values()), [str(m) for m in MINUTES.values()])
        axis.minorticks_off()
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, file)


def by_labels(rows: list[Row], file: Path) -> None:
    """Plot each row's gain over its source with few and with all labels, a row of panels per archive."""
    scored = [r for r in rows if r.get('labels')]
    shown = {f'D-{key}': title for key, title in ARMS.items() if key != 'scratch'}
    shown['anchor'] = 'the default, six blocks'
    figure, axes = _panels(2, len(BUDGETS))
    pairs = product(BUDGETS.items(), {'tuned': 'LoRA-r8 tuning', 'linear': 'linear probe'}.items())
    for axis, ((domain, budgets), (how, method)) in zip(axes, pairs, strict=True):
        for i, ((name, title), color) in enumerate(zip(shown.items(), COLORS.values(), strict=True)):
            if mine := where(scored, name=name, domain=domain):
                found = [pooled(r['labels'][str(n)][how][2:] for r in mine) for n in budgets]
                places = [x + 0.12 * (i - 2) for x in range(len(budgets))]
                _intervals(axis, places, found, fmt='o', ms=5, color=color, label=title)
        axis.set(title=TITLES[domain], xlabel='labels', ylabel=f'gain by {method}, points')
        axis.set_xticks(range(len(budgets)), list(budgets.values()))
        axis.grid(visible=False, axis='x')
    _legend_below(figure, axes[0], 5)
    _save(figure, file)


def by_number(
    panels: Mapping[str, Mapping[str, list[Row]]], number: Callable[[Row], int], title: str, file: Path
) -> None:
    """Plot gain against a number of each row, such as its steps: a row of panels per name, a line per arm."""
    figure, axes = _panels(2, len(panels))
    pairs = product(panels.items(), (0, 1))
    for axis, ((name, of), method) in zip(axes, pairs, strict=True):
        ticks = sorted({number(r) for mine in of.values() for r in mine})
        for key, mine in of.items():
            known = [n for n in ticks if any(number(r) == n for r in mine)]
            points = [combined([r for r in mine if number(r) == n], method) for n in known]
            _intervals(axis, known, points, fmt='o-', color=COLORS[key], label=ARMS[key])
        label = f'gain by {METHODS[method]}, points'
        axis.set(title=name, xscale='log', xlabel=title, ylabel=label)
        axis.set_xticks(ticks, [f'{n:,}' for n in ticks])
        axis.minorticks_off()
    _legend_below(figure, axes[0], 4)
    _save(figure, file)


def by_weights(rows: list[Row], names: Mapping[str, str], file: Path) -> None:
    """Plot gain against the number of trainable weights, one point per row."""
    figure, axes = _panels(2)
    for axis, method in zip(axes, (0, 1), strict=True):
        for (name, title), marker in zip(names.items(), cycle(MARKERS), strict=False):
            mine = where(rows, name=name)
            if mine:
                key = next(k for k in COLORS if k in name)
                style = {'fmt': marker, 'ms': 7, 'color': COLORS[key], 'label': title}
                _intervals(axis, [mine[0]['trained'] / 1e6], [combined(mine, method)], **style)
        axis.set(
            xscale='log', xlabel='weights that train, millions', ylabel=f'gain by {METHODS[method]}, points'
        )
        axis.set_ylim(bottom=0)
        axis.set_xticks([0.1, 0.3, 1, 3, 10], ['0.1', '0.3', '1', '3', '10'])
        axis.set_xlim(0.03, 10)
        axis.minorticks_off()
    _legend_below(figure, axes[0], 4)
    _save(figure, file)


def by_block(rows: Mapping[str, Row], file: Path) -> None:
    """Plot the paper's block analysis, one line per row: eigenvalues, and accuracy of patch probes."""
    figure, axes = _panels(4)
    titles = 'mean eigenvalue', 'variance of eigenvalues', 'place of a patch', 'class of its image'
    for (title, row), color in zip(rows.items(), ['darkgray', *COLORS.values()], strict=False):
        block, *columns = np.array(row['blocks']).T
        for axis, values in zip(axes, columns, strict=True):
            axis.plot(block, values, 'o-', ms=3, color=color, label=title)
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel='block')
    axes[2].set_ylabel('accuracy')
    axes[3].legend(frameon=False, fontsize=8, loc='lower right')
    _save(figure, file)


def memory(measured: Sequence[Row], file: Path) -> None:
    """Plot the memory of a step of 8 images, one bar per backbone, objective and trainable part."""
    figure, axes = _panels(2)
    kinds = {'ExPLoRA': COLORS['explora'], 'explora_geo, all weights': COLORS['full']}
    kinds['lightly'] = COLORS['unfreeze']
    for axis, objective in zip(axes, ('mae', 'dinov2'), strict=True):
        of = {
            r['setting']['model'].split('_')[1]: r for r in measured if r['setting']['objective'] == objective
        }
        of = {title: of[name] for name, title in SIZES.items() if name in of}
        for i, (kind, color) in enumerate(kinds.items()):
            found = [next(v for k, v in r['columns']['GB'].items() if kind in k) for r in of.values()]
            places = np.arange(len(of)) + 0.26 * (i - 1)
            title = {'ExPLoRA': 'ExPLoRA [L]-r32', 'lightly': "all weights, lightly's parts"}.get(
                kind, 'all weights'
            )
            axis.bar(places, found, 0.24, color=color, label=title)
        axis.set_xticks(range(len(of)), list(of))
        axis.grid(visible=False, axis='x')
        axis.set(title={'mae': 'M', 'dinov2': 'D'}[objective], ylabel='GB of a step of 8 images')
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, file)


def gain_against_loss(panels: Mapping[str, Mapping[str, list[Row]]], file: Path) -> None:
    """Plot mean gain where a model was adapted against its change on natural images, one point per row."""
    panels = {title: rows for title, rows in panels.items() if any(rows.values())}
    figure, axes = _panels(len(panels))
    for axis, (where_adapted, rows) in zip(axes, panels.items(), strict=True):
        axis.axvline(0, color='gray', lw=0.8)
        for i, (title, mine) in enumerate(rows.items()):
            found: Any = [[r['gain']['one'], r['transfer']['natural']['gain']] for r in mine]
            if found:
                x, y = 100 * np.array(found)[..., 0].mean((0, 2))
                axis.plot(y, x, MARKERS[i], color=f'C{i}', label=title)
        axis.set(title=where_adapted, xlabel='change on natural images, points')
        axis.margins(0.2)
        axis.legend(frameon=False, fontsize=7, loc='upper left')
    axes[0].set_ylabel('gain where adapted, points')
    _save(figure, file)
