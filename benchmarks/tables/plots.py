"""Plots of a table: accuracy against trainable parameters and compute, bars, learning curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from explora_geo.checkpoints import atomic_path

from .records import Record, by_row
from .rows import Table
from .summary import Spread, summarise

#: Suffixes of the file names, in report order.
PLOTS = 'bars', 'trainable', 'flops', 'curves'
_COLORS = {'here': '#1f7a8c', 'published, other data and models': '#9aa5b1'}
_COSTS = {
    'trainable': ('parameters that train, millions', 1e6),
    'flops': ('compute of pre-training, TFLOP', 1e12),
}
_Values = Mapping[str, Spread]
_Found = Mapping[str, Sequence[Record]]


def draw_plots(out: Path, stem: str, table: Table, records: Sequence[Record]) -> list[Path]:
    """Draw every plot that the records allow, as PNG files whose names start with *stem*."""
    known = by_row(records, table.id)
    summaries = {name: summarise(known.get(name, [])) for name in table.rows}
    values = {name: value for name, value in summaries.items() if value is not None}
    found = {name: known[name] for name in values}
    figures = {'bars': _bars(table, values)} if values else {}
    for key in _COSTS:
        if len({rows[0][key] for rows in found.values() if rows[0][key]}) > 1:
            figures[key] = _scatter(table, values, found, key)
    if any(len(r['curve']) > 1 for rows in found.values() for r in rows):
        figures['curves'] = _curves(table, found)
    files = [out / f'{stem}_{name}.png' for name in figures]
    for path, figure in zip(files, figures.values(), strict=True):
        for axis in figure.axes:
            axis.spines[['top', 'right']].set_visible(False)
            axis.grid(alpha=0.3)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=120, format='png')
        plt.close(figure)
    return files


def _bars(table: Table, values: _Values) -> Figure:
    """Draw a bar with interval per row, beside the published value."""
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.42 * len(values)), layout='constrained')
    here, paper = _COLORS.values()
    published = {name: table.rows[name].published.value for name in values}
    for i, (name, value) in enumerate(values.items()):
        axis.barh(i + 0.19, value.mean, 0.36, xerr=value.half, color=here, capsize=3)
        axis.barh(i - 0.19, published[name] or 0.0, 0.36, color=paper)
    if any(published.values()):
        handles = [Patch(color=color, label=label) for label, color in _COLORS.items()]
        figure.legend(handles=handles, loc='outside lower center', ncols=2, frameon=False, fontsize=8)
    axis.set_yticks(range(len(values)), [table.rows[name].name for name in values])
    axis.invert_yaxis()
    axis.set_xlabel(table.metric)
    return figure


def _scatter(table: Table, values: _Values, found: _Found, key: str) -> Figure:
    """Plot value against a cost on a logarithmic axis, with published values in a separate panel.

    Rows without training are horizontal lines.
    """
    label, factor = _COSTS[key]
    published = {
        row.name: (row.pretrain_parameters.value / 1e6, row.published.value)
        for row in table.rows.values()
        if key == 'trainable' and row.pretrain_parameters.value and row.published.value
    }
    panels = 2 if published else 1
    figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.6), layout='constrained', squeeze=False)
    axis: Axes = axes[0, 0]
    for i, (name, value) in enumerate(values.items()):
        title, cost = table.rows[name].name, found[name][0][key] / factor
        if cost:
            style: Any = {'fmt': _marker(i), 'capsize': 3, 'color': f'C{i}'}
            axis.errorbar(cost, value.mean, yerr=value.half, label=title, **style)
        else:
            axis.axhline(value.mean, color=f'C{i}', linestyle='--', label=title)
    for title, (x, y) in published.items():
        axes[0, 1].plot(x, y, 'x', label=title)
    for panel, where in zip(axes[0], ('here', 'published'), strict=False):
        panel.set_title(where, fontsize=10, loc='left')
        panel.set_xscale('log')
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter('{x:g}')
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(label)
        panel.set_ylabel(table.metric)
        panel.legend(frameon=False, fontsize=7)
    return figure


def _curves(table: Table, found: _Found) -> Figure:
    """Plot k-NN accuracy over steps, one line per row with the range of its seeds."""
    figure, axis = plt.subplots(figsize=(9, 4.6), layout='constrained')
    for i, (name, rows) in enumerate(found.items()):
        curves = [r['curve'] for r in rows if len(r['curve']) > 1]
        if not curves:
            continue
        steps = [step for step, _ in curves[0]]
        values = [[100 * v for _, v in c] for c in curves if len(c) == len(steps)]
        columns = list(zip(*values, strict=True))
        mean, low, high = ([end(c) for c in columns] for end in (lambda c: sum(c) / len(c), min, max))
        axis.plot(steps, mean, f'C{i}', marker=_marker(i), markersize=4, label=table.rows[name].name)
        axis.fill_between(steps, low, high, alpha=0.2, color=f'C{i}')
    axis.set_xlabel('optimizer steps')
    axis.set_ylabel('k-NN accuracy on held-out training images, %')
    figure.legend(loc='outside right upper', frameon=False, fontsize=7)
    return figure


def _marker(position: int) -> str:
    """Return a row's marker: marker and color together tell rows apart, as there are ten colors."""
    return 'os^'[position // 10 % 3]
