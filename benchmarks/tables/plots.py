"""Plots of a table: accuracy against what trains and against compute, bars, learning curves."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullLocator

from explora_geo.checkpoints import atomic_path

from .records import Record, by_row
from .rows import Table
from .summary import Spread, summarise

#: Ends of the files' names, in the order of a report.
PLOTS = 'bars', 'trainable', 'flops', 'curves'
_HERE, _PAPER = '#1f7a8c', '#9aa5b1'


def draw_plots(out: Path, stem: str, table: Table, records: Sequence[Record]) -> list[Path]:
    """Draw what the records of a table allow, into PNG files whose names begin with the stem."""
    known = by_row(records, table.id)
    runs = {(name, 'run'): known.get((name, 'run'), []) for name in table.rows}
    found = {key: rows for key, rows in runs.items() if summarise(rows) is not None}
    if not found:
        return []
    files = [_bars(out / f'{stem}_bars.png', table, found)]
    costs = {'trainable': 'parameters that train, millions', 'flops': 'compute of pre-training, TFLOP'}
    for key, label in costs.items():
        if len({rows[0][key] for rows in found.values() if rows[0][key]}) > 1:
            files.append(_scatter(out / f'{stem}_{key}.png', table, found, key, label))
    if any(len(r['curve']) > 1 for rows in found.values() for r in rows):
        files.append(_curves(out / f'{stem}_curves.png', table, found))
    return files


_Found = dict[tuple[str, str], list[Record]]


def _bars(path: Path, table: Table, found: _Found) -> Path:
    """A bar per row with its interval, and the published value beside it."""
    rows = list(found)
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.42 * len(rows)), layout='constrained')
    for i, key in enumerate(rows):
        here = _value(found[key])
        axis.barh(i + 0.19, here.mean, 0.36, xerr=here.half, color=_HERE, capsize=3)
        published = table.rows[key[0]].published
        if published.value is not None:
            axis.barh(i - 0.19, published.value, 0.36, color=_PAPER)
    if any(table.rows[key[0]].published.value is not None for key in rows):
        labels = {'here': _HERE, 'published, other data and models': _PAPER}
        figure.legend(
            handles=[Patch(color=colour, label=label) for label, colour in labels.items()],
            loc='outside lower center',
            ncols=2,
            frameon=False,
            fontsize=8,
        )
    axis.set_yticks(range(len(rows)), [table.rows[key[0]].name for key in rows])
    axis.invert_yaxis()
    axis.set_xlabel(table.metric)
    return _save(figure, [axis], path)


def _scatter(path: Path, table: Table, found: _Found, key: str, label: str) -> Path:
    """Value against a cost, on a logarithmic axis, and what was published in a panel of its own.

    Rows that train nothing are lines across.
    """
    factor = 1e6 if key == 'trainable' else 1e12
    published = {
        row.name: (row.pretrain_parameters.value / 1e6, row.published.value)
        for row in table.rows.values()
        if key == 'trainable' and row.pretrain_parameters.value and row.published.value
    }
    panels = 2 if published else 1
    figure, axes = plt.subplots(1, panels, figsize=(5.5 * panels, 4.6), layout='constrained', squeeze=False)
    axis = axes[0, 0]
    for i, (name, rows) in enumerate(found.items()):
        value, title = _value(rows), table.rows[name[0]].name
        if rows[0][key]:
            x = rows[0][key] / factor
            style = {'fmt': _marker(i), 'capsize': 3, 'color': f'C{i}'}
            axis.errorbar(x, value.mean, yerr=value.half, label=title, **style)
        else:
            axis.axhline(value.mean, color=f'C{i}', linestyle='--', label=title)
    axis.set_title('here', fontsize=10, loc='left')
    if published:
        for title, (x, y) in published.items():
            axes[0, 1].plot(x, y, 'x', label=title)
        axes[0, 1].set_title('published', fontsize=10, loc='left')
    for panel in axes[0]:
        panel.set_xscale('log')
        panel.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        panel.xaxis.set_major_formatter('{x:g}')
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel(label)
        panel.set_ylabel(table.metric)
        panel.legend(frameon=False, fontsize=7)
    return _save(figure, axes[0], path)


def _curves(path: Path, table: Table, found: _Found) -> Path:
    """k-NN accuracy over steps, a line per row with the range of its seeds."""
    figure, axis = plt.subplots(figsize=(9, 4.6), layout='constrained')
    for i, (name, rows) in enumerate(found.items()):
        curves = [r['curve'] for r in rows if len(r['curve']) > 1]
        if not curves:
            continue
        steps = [step for step, _ in curves[0]]
        values = [[100 * v for _, v in c] for c in curves if len(c) == len(steps)]
        columns = list(zip(*values, strict=True))
        mean = [sum(c) / len(c) for c in columns]
        axis.plot(steps, mean, f'C{i}', marker=_marker(i), markersize=4, label=table.rows[name[0]].name)
        low, high = ([end(c) for c in columns] for end in (min, max))
        axis.fill_between(steps, low, high, alpha=0.2, color=f'C{i}')
    axis.set_xlabel('optimizer steps')
    axis.set_ylabel('k-NN accuracy on held-out training images, %')
    figure.legend(loc='outside right upper', frameon=False, fontsize=7)
    return _save(figure, [axis], path)


def _marker(position: int) -> str:
    """A row's marker: there are ten colours."""
    return 'os^'[position // 10 % 3]


def _value(rows: Sequence[Record]) -> Spread:
    found = summarise(rows)
    assert found is not None  # every record has a value
    return found


def _save(figure: Figure, axes: Sequence[Axes], path: Path) -> Path:
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, format='png')
    plt.close(figure)
    return path
