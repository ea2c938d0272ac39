"""Table and plot of how the time of a step grows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from explora_geo.checkpoints import atomic_path

from .clock import Times
from .records import heading, table


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent of the power law through points, by least squares on logarithms; NaN for a single point."""
    if len(x) < 2:
        return float('nan')
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def slopes(points: Sequence[dict[str, Any]]) -> tuple[float, float, float]:
    """Exponents of the measured time, of its upper half of points, and of the operations."""
    x = [p['value'] for p in points]
    seconds, flops = ([p[name] for p in points] for name in ('median', 'flops'))
    upper = len(x) // 2
    return slope(x, seconds), slope(x[upper:], seconds[upper:]), slope(x[upper:], flops[upper:])


def markdown(rows: list[dict[str, Any]]) -> str:
    """All measurements as tables.

    Args:
        rows: Results of `measure_scaling`.

    Returns:
        Markdown.
    """
    lines = [
        '# How the time of a step grows',
        '',
        "Made by `explora-bench scaling`: M-ExPLoRA's step on real images, the points of a table in turns, "
        'median of the rounds with the fastest and slowest. Operations are those of the blocks of encoder '
        "and decoder, of which attention's part grows with the square of the tokens. Ratios are to "
        'the last row.',
    ]
    for row in rows:
        lines += heading(row, f', {row["repeats"]} rounds')
        for axis, points in row['axes'].items():
            last = points[-1]
            cells = [
                (
                    p['value'],
                    p['tokens'],
                    Times(p['median'], p['low'], p['high']).text(),
                    f'{p["median"] / last["median"]:.2f}',
                    f'{p["flops"] / last["flops"]:.2f}',
                )
                for p in points
            ]
            every, upper, expected = slopes(points)
            lines += [
                *table((axis, 'tokens', 'seconds', 'ratio', 'ratio of operations'), cells),
                '',
                f'Time grows with the power {every:.2f} of it, in the upper half {upper:.2f}; operations '
                f'there with {expected:.2f}.',
                '',
            ]
    return '\n'.join(lines)


def draw(path: Path, row: dict[str, Any]) -> None:
    """Plot measured points and what operations would make of the last one, both axes logarithmic.

    Args:
        path: PNG file.
        row: Result of `measure_scaling`.
    """
    axes = row['axes']
    figure, panels = plt.subplots(1, len(axes), figsize=(3.4 * len(axes), 3.4), squeeze=False)
    for panel, (axis, points) in zip(panels[0], axes.items(), strict=True):
        x = [p['value'] for p in points]
        middle = np.array([p['median'] for p in points])
        errors = np.abs(np.array([[p['low'] for p in points], [p['high'] for p in points]]) - middle)
        _, upper, expected = slopes(points)
        panel.errorbar(x, middle, errors, fmt='o', label=f'measured, slope {upper:.2f}')
        scale = points[-1]['median'] / points[-1]['flops']
        by_flops = [scale * p['flops'] for p in points]
        panel.plot(x, by_flops, '--', color='grey', label=f'operations, slope {expected:.2f}')
        panel.set_xscale('log')
        panel.set_yscale('log')
        panel.set_xticks(x, list(map(str, x)))
        panel.minorticks_off()
        panel.set_xlabel(axis)
        panel.legend(fontsize='small')
    panels[0][0].set_ylabel('seconds per step')
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format='png', dpi=120)
    plt.close(figure)
