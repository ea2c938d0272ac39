"""Charts of the report as inline SVG in the page's colors and fonts."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Placeholder colors for the page's CSS variables, so that charts follow light and dark mode.
_NAMES = ('ink', 'muted', 'line', 'source', 'adapted', 'block', 'turns', 'few')
_COLORS = {name: f'#{number:06x}' for number, name in enumerate(_NAMES, start=0x010203)}
#: Color, marker and title of each feature variant; markers distinguish them without color.
VARIANTS = {
    'source': ('source', 'o', 'Source'),
    'best_block': ('block', 's', 'Source, best block'),
    'turns_source': ('turns', '^', 'Source, mean of turns'),
    'whitened': ('turns', 'P', 'Source, whitened'),
    'adapted': ('adapted', 'D', 'Adapted'),
    'turns_adapted': ('adapted', 'v', 'Adapted, mean of turns'),
    'beside': ('few', '*', 'Ready-made adapter'),
}
_STYLE: Any = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'explora_geo',
    'text.parse_math': False,
    'font.size': 11,
    **dict.fromkeys(('axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), _COLORS['muted']),
    'text.color': _COLORS['ink'],
    'grid.color': _COLORS['line'],
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
}
#: Smallest span of an accuracy axis, points: a small change must look small.
SPAN = 20.0


@matplotlib.rc_context(_STYLE)
def score_chart(row: Mapping[str, Any], key: str) -> str:
    """Draw the accuracies of all feature variants by one method, with their intervals, as SVG.

    Args:
        row: A row of `scores.rows` (see `page`) with the `titles` of its scores.
        key: Prefix of the ids, unique to each chart of the page.
    """
    found = [(name, row[name]) for name in VARIANTS if row.get(name)]
    figure, axis = _figure(0.42 * len(found) + 0.62)
    for place, (name, score) in enumerate(reversed(found)):
        color, marker, _ = VARIANTS[name]
        mean = 100 * score['mean']
        if score.get('low') is not None and score.get('high') is not None:
            ends = [100 * score['low'], 100 * score['high']]
            axis.plot(ends, [place, place], color=_COLORS[color], linewidth=2, solid_capstyle='round')
        axis.plot(mean, place, marker, color=_COLORS[color], markersize=7)
        axis.text(mean, place + 0.2, f'{mean:.1f}', ha='center', fontsize=10)
    axis.set_yticks(range(len(found)), [row['titles'][name] for name, _ in reversed(found)])
    axis.tick_params(axis='y', length=0, labelcolor=_COLORS['ink'])
    axis.set_ylim(-0.5, len(found) - 0.3)
    axis.spines['left'].set_visible(False)
    low, high = axis.get_xlim()
    if high - low < SPAN:
        low = np.clip((low + high - SPAN) / 2, 0, 100.5 - SPAN)
        high = low + SPAN
    axis.set_xlim(max(low, 0), min(high, 100.5))
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.grid(axis='x')
    axis.set_xlabel('test accuracy, %')
    text = ', '.join(f'{row["titles"][n]} {100 * s["mean"]:.1f} %' for n, s in found)
    return _svg(figure, key, f'{row["title"]}: {text}')


@matplotlib.rc_context(_STYLE)
def curve_chart(curve: Mapping[str, Any], points: Sequence[tuple[float, float]], key: str) -> str:
    """Draw one quantity over training as SVG, with its `start`, if given, as a dotted line.

    Args:
        curve: An entry of `curves`; see `page`.
        points: Its points without missing values.
        key: Prefix of the ids.
    """
    figure, axis = _figure(2.3)
    x, y = zip(*points, strict=True)
    axis.plot(x, y, '-o' if len(x) <= 40 else '-', color=_COLORS['adapted'], linewidth=1.8, markersize=4)
    start = curve.get('start')
    if start is not None:
        axis.axhline(start, color=_COLORS['source'], linestyle=(0, (1, 2)), linewidth=1.6)
        place = {'transform': axis.get_yaxis_transform(), 'ha': 'right', 'va': 'bottom'}
        axis.text(1, start, 'source', color=_COLORS['source'], **place)
    axis.set_xlabel(str(curve.get('x_label', 'step')))
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.grid(axis='y')
    return _svg(figure, key, f'{curve["title"]} from {y[0]:.3g} to {y[-1]:.3g}')


def _figure(height: float) -> tuple[Figure, Any]:
    """Make a figure as wide as a phone, so that its text is as large as the page's."""
    figure = Figure(figsize=(5.0, height), layout='constrained')
    return figure, figure.subplots()


def _svg(figure: Figure, key: str, text: str) -> str:
    """Return inline SVG without header or namespaces, with unique ids, CSS colors and an ARIA label."""
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True)
    svg = file.getvalue()
    svg = svg[svg.index('<svg') :]
    left_out = r'<metadata>.*?</metadata>|<style.*?</style>| xmlns(:\w+)?="[^"]*"| ?font-family:[^;"]*;?'
    svg = re.sub(left_out, '', svg, flags=re.S).replace('xlink:href', 'href')
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\1{key}-', svg)
    for name, color in _COLORS.items():
        svg = svg.replace(color, f'var(--{name})')
    svg = re.sub(r'\s*\n\s*', ' ', svg)
    label = f'<svg role="img" aria-label="{escape(text, quote=True)}" class="chart"'
    return re.sub(r'<svg width="[^"]*" height="[^"]*"', lambda _: label, svg, count=1)
