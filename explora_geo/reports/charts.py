"""Charts of the report as inline SVG whose colors and fonts are those of the page."""

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Stand-ins in the drawing for the page's CSS variables, so that charts follow light and dark.
_COLORS = {
    'ink': '#010203',
    'muted': '#040506',
    'line': '#070809',
    'source': '#0a0b0c',
    'adapted': '#0d0e0f',
    'block': '#101112',
    'turns': '#131415',
    'few': '#161718',
}
#: Color and marker of each variant of the features, told apart without colors, too.
VARIANTS = {
    'source': ('source', 'o', 'Source'),
    'best_block': ('block', 's', 'Source, best block'),
    'turns_source': ('turns', '^', 'Source, mean of turns'),
    'whitened': ('turns', 'P', 'Source, whitened'),
    'adapted': ('adapted', 'D', 'Adapted'),
    'turns_adapted': ('adapted', 'v', 'Adapted, mean of turns'),
    'beside': ('few', '*', 'Adapted beforehand'),
}
_STYLE: Any = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'explora_geo',
    'text.parse_math': False,
    'font.size': 11,
    'axes.edgecolor': _COLORS['muted'],
    'axes.labelcolor': _COLORS['muted'],
    'xtick.color': _COLORS['muted'],
    'ytick.color': _COLORS['muted'],
    'text.color': _COLORS['ink'],
    'grid.color': _COLORS['line'],
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.axisbelow': True,
}
#: Smallest span of an axis of accuracies, points: a small change must look small.
SPAN = 20.0


@matplotlib.rc_context(_STYLE)
def score_chart(row: Mapping[str, Any], key: str) -> str:
    """Accuracies of all variants of the features by one measurement, with their intervals.

    Args:
        row: A row of `scores.rows`; see `page`.
        key: Prefix of the ids, different for every chart of the page.

    Returns:
        SVG.
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
        axis.annotate(
            f'{mean:.1f}', (mean, place), (0, 6), textcoords='offset points', ha='center', fontsize=10
        )
    titles = {name: row.get('titles', {}).get(name) or variant(name, score) for name, score in found}
    axis.set_yticks(range(len(found)), [titles[name] for name, _ in reversed(found)])
    axis.tick_params(axis='y', length=0, labelcolor=_COLORS['ink'])
    axis.set_ylim(-0.5, len(found) - 0.3)
    axis.spines['left'].set_visible(False)
    low, high = axis.get_xlim()
    if high - low < SPAN:
        low, high = (low + high - SPAN) / 2, (low + high + SPAN) / 2
        shift = max(high - 100, 0) - max(-low, 0)
        low, high = low - shift, high - shift
    axis.set_xlim(max(low, 0), min(high, 100.5))
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.grid(axis='x')
    axis.set_xlabel('test accuracy, %')
    text = ', '.join(f'{titles[n]} {100 * s["mean"]:.1f} %' for n, s in found)
    return _svg(figure, key, f'{row["title"]}: {text}')


def variant(name: str, score: Mapping[str, Any]) -> str:
    """Name of a variant of the features, with its block or its number of turns."""
    label = VARIANTS[name][2]
    if name == 'best_block' and score.get('block'):
        return f'{label} ({score["block"]})'
    if name.startswith('turns') and score.get('turns'):
        return label.replace('turns', f'{score["turns"]} turns')
    return label


@matplotlib.rc_context(_STYLE)
def curve_chart(curve: Mapping[str, Any], key: str) -> str:
    """One quantity over training, with its start as a dotted line where it is given.

    Args:
        curve: An entry of `curves`; see `page`.
        key: Prefix of the ids.

    Returns:
        SVG.
    """
    figure, axis = _figure(2.3)
    x, y = curve['x'], curve['y']
    few = len(x) <= 40
    axis.plot(x, y, '-o' if few else '-', color=_COLORS['adapted'], linewidth=1.8, markersize=4)
    start = curve.get('start')
    if start is not None:
        axis.axhline(start, color=_COLORS['source'], linestyle=(0, (1, 2)), linewidth=1.6)
        axis.annotate(
            'source',
            (1, start),
            (-2, 4),
            xycoords=('axes fraction', 'data'),
            textcoords='offset points',
            ha='right',
            color=_COLORS['source'],
        )
    _plain(axis, str(curve.get('x_label', 'step')), '')
    text = f'{curve["title"]} from {y[0]:.3g} to {y[-1]:.3g}' if len(y) else str(curve['title'])
    return _svg(figure, key, text)


@matplotlib.rc_context(_STYLE)
def strength_chart(strength: Mapping[str, Any], key: str) -> str:
    """Scores over the strength of the adapter, from the source (0) to all of it (1).

    Args:
        strength: `strength`; see `page`.
        key: Prefix of the ids.

    Returns:
        SVG.
    """
    figure, axis = _figure(2.6)
    colors = ('adapted', 'turns', 'block', 'few')
    markers = 'os^D'
    texts = []
    for i, series in enumerate(strength['series']):
        y = [100 * v for v in series['y']]
        color = _COLORS[colors[i % 4]]
        axis.plot(strength['x'], y, f'-{markers[i % 4]}', color=color, linewidth=1.8, markersize=5)
        axis.annotate(
            series['title'],
            (strength['x'][-1], y[-1]),
            (6, 0),
            textcoords='offset points',
            va='center',
            color=color,
        )
        texts.append(f'{series["title"]} from {y[0]:.1f} to {y[-1]:.1f} %')
    chosen = strength.get('chosen')
    if chosen is not None:
        axis.axvline(chosen, color=_COLORS['muted'], linestyle=(0, (3, 3)), linewidth=1, zorder=0)
        axis.annotate(
            'chosen',
            (chosen, 0),
            (-4 if chosen > 0.5 else 4, 4),
            xycoords=('data', 'axes fraction'),
            textcoords='offset points',
            ha='right' if chosen > 0.5 else 'left',
            color=_COLORS['muted'],
        )
    axis.set_xlim(-0.04, 1.22)  # room for the names of the lines
    low, high = axis.get_ylim()
    if high - low < SPAN / 2:
        axis.set_ylim((low + high - SPAN / 2) / 2, (low + high + SPAN / 2) / 2)
    _plain(axis, 'strength of the adapter', '%')
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1])
    axis.xaxis.set_major_formatter('{x:g}')
    return _svg(figure, key, 'Scores by strength: ' + '; '.join(texts))


def _figure(height: float) -> tuple[Figure, Any]:
    """A drawing as wide as a phone, so that text is as large as the page's."""
    figure = Figure(figsize=(5.0, height), layout='constrained')
    return figure, figure.subplots()


def _plain(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axis.yaxis.set_major_locator(MaxNLocator(5))
    axis.grid(axis='y')


def _svg(figure: Figure, key: str, text: str) -> str:
    """Inline SVG: no header, no foreign names, ids of its own, colors by variables, and a text for all."""
    file = io.BytesIO()
    none: Sequence[str] = ('Date', 'Creator', 'Format', 'Type')
    figure.savefig(file, format='svg', transparent=True, metadata=dict.fromkeys(none))
    svg = file.getvalue().decode()
    svg = svg[svg.index('<svg') :]
    svg = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>', '', svg, flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', '', svg)
    svg = svg.replace('xlink:href', 'href')
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = svg.replace('href="#', f'href="#{key}-').replace('url(#', f'url(#{key}-')
    svg = re.sub(r' ?font-family:[^;"]*;?', '', svg)
    for name, color in _COLORS.items():
        svg = svg.replace(color, f'var(--{name})')
    svg = re.sub(r'<svg width="[^"]*" height="[^"]*"', '<svg', svg, count=1)
    svg = re.sub(r'\s*\n\s*', ' ', svg)
    label = escape(text, quote=True)
    return svg.replace('<svg', f'<svg role="img" aria-label="{label}" class="chart"', 1)
