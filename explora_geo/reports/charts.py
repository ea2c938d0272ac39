"""Curves of the report as inline SVG whose colors and fonts are those of the page."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-ins in the drawing for the page's CSS variables, so that charts follow light and dark.
_COLORS = {'muted': '#010203', 'line': '#010204', 'source': '#010205', 'adapted': '#010206'}
_STYLE: Any = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'explora_geo',
    'text.parse_math': False,
    'font.size': 11,
    **dict.fromkeys(('axes.edgecolor', 'axes.labelcolor', 'xtick.color', 'ytick.color'), _COLORS['muted']),
    'grid.color': _COLORS['line'],
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
}


@matplotlib.rc_context(_STYLE)
def curve_chart(curve: Mapping[str, Any], points: Sequence[tuple[float, float]], key: str) -> str:
    """One quantity over training as SVG, with its `start` as a dotted line where it is given.

    Args:
        curve: An entry of `curves`; see `page`.
        points: Its points without gaps.
        key: Prefix of the ids, different for every chart of the page.
    """
    figure = Figure(figsize=(5.0, 2.3), layout='constrained')  # as wide as a phone: text as large as its own
    axis = figure.subplots()
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
    file = io.StringIO()
    figure.savefig(file, format='svg', transparent=True)
    return _inline(file.getvalue(), key, f'{curve["title"]} from {y[0]:.3g} to {y[-1]:.3g}')


def _inline(svg: str, key: str, text: str) -> str:
    """SVG for a page: no header, no foreign names, ids of its own, colors by variables, and a text for all."""
    svg = svg[svg.index('<svg') :]
    left_out = r'<metadata>.*?</metadata>|<style.*?</style>| xmlns(:\w+)?="[^"]*"| ?font-family:[^;"]*;?'
    svg = re.sub(left_out, '', svg, flags=re.S).replace('xlink:href', 'href')
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf'\1{key}-', svg)
    for name, color in _COLORS.items():
        svg = svg.replace(color, f'var(--{name})')
    svg = re.sub(r'\s*\n\s*', ' ', svg)
    label = f'<svg role="img" aria-label="{escape(text, quote=True)}" class="chart"'
    return re.sub(r'<svg width="[^"]*" height="[^"]*"', lambda _: label, svg, count=1)
