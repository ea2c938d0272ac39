"""Tables of the study: python -m benchmarks.study.report RUNS.jsonl FOLDER."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from explora_geo.checkpoints import atomic_path
from explora_geo.evaluation.comparison import MARGIN
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES

from ..tables.records import markdown_table
from ..tables.records import read as read_lines
from ..tables.summary import Spread, welch
from .domains import LABELED
from .scoring import NORMAL

Row = Mapping[str, Any]
METHODS = ('k-NN', 'linear probe', '10 labels a class')
MINUTES = {640: 1, 6_400: 10, 38_400: 60}
TITLES = {'eurosat': 'EuroSAT', 'aid': 'AID', 'natural': 'natural images', 'naip': 'NAIP places'}
_FREE = {'turns4': 'mean of 4 turns', 'white0.5': 'whitened by half', 'white1': 'whitened'}
_FREE |= {'white1x4': 'whitened, mean of 4 turns'}


def read(file: Path) -> list[Row]:
    """Read the rows of a JSON lines file, without failed ones."""
    return [r for r in read_lines(file) if r['group'] != 'failed']


def where(rows: Iterable[Row], **values: Any) -> list[Row]:
    """Return the rows with these values."""
    return [r for r in rows if all(r.get(k) == v for k, v in values.items())]


def pooled(pairs: Iterable[Sequence[float]]) -> Spread:
    """Return the mean gain over seeds in points, whose error covers test images and, with several, seeds."""
    mean, half = 100 * np.array(list(pairs)).T
    parts = [((half.mean() / NORMAL) ** 2, np.inf)]  # all seeds share their test images
    if len(mean) > 1:
        parts.append((mean.var(ddof=1) / len(mean), len(mean) - 1))
    return Spread(float(mean.mean()), *welch(parts), len(mean))


def combined(rows: Iterable[Row], method: int, variant: str = 'one') -> Spread:
    """Return the `pooled` gains of rows by a method."""
    return pooled(r['gain'][variant][method] for r in rows)


def gains_of(rows: list[Row]) -> list[str]:
    """Return the `combined` gains by every method, as text."""
    return [combined(rows, method).text('+') for method in range(len(METHODS))]


def harm(rows: list[Row], name: str = 'anchor', source: str = 'depth6') -> list[str]:
    """List the default at three lengths on every domain, beside alternatives that cost nothing."""
    lines: list[Sequence[str]] = []
    for domain, title in TITLES.items():
        (free,) = where(rows, group='source', key=f'{source}.{domain}')
        scores = free['scores']
        lines.append([f'**{title}**: source', '', *(f'{100 * x:.1f}' for x in scores['one'])])
        known = {title: scores[k] for k, title in _FREE.items()}
        blocks = {k: v for k, v in scores.items() if k.startswith('block')}
        if blocks:
            best = max(blocks, key=lambda k: sum(blocks[k]))
            known = {f'block {int(best.removeprefix("block")) + 1}, its best': blocks[best], **known}
        for what, values in known.items():
            gains = [f'{100 * (a - b):+.1f}' for a, b in zip(values, scores['one'], strict=True)]
            lines.append([f'source, {what}', '', *gains, min(gains, key=float)])
        for views, minutes in MINUTES.items():
            for recipe, how in ((name, 'adapted'), (f'{name}-oriented', 'adapted, `oriented: true`')):
                found = where(rows, name=recipe, source=source, domain=domain, views=views)
                if found:
                    cells = [combined(found, i) for i in range(3)]
                    texts = [f'**{c.mean:+.1f}** ± {c.half:.1f}' for c in cells]
                    worst = f'{100 * min(g for r in found for g, _ in r["gain"]["one"]):+.1f}'
                    lines.append([f'{how}, {views:,} ({minutes})', str(len(found)), *texts, worst])
    return markdown_table(['domain, views (minutes)', 'seeds', *METHODS, 'worst of all'], lines)


def recipes(rows: list[Row], source: str = 'depth6', views: int = 6_400) -> list[str]:
    """List all recipes at one length, best first."""
    domains, lines = ('eurosat', 'aid'), []
    rows = where(rows, source=source, views=views)
    for name in dict.fromkeys(r['name'] for r in rows):
        parts = [where(rows, name=name, domain=domain) for domain in domains]
        if all(parts):
            cells = [combined(part, i) for part in parts for i in range(3)]
            lines.append((-sum(c.mean for c in cells), [f'`{name}`', *(c.text('+') for c in cells)]))
    header = ['recipe', *(f'{TITLES[d]}: {m}' for d in domains for m in METHODS)]
    return markdown_table(header, [cells for _, cells in sorted(lines, key=lambda line: line[0])])


def transfer(rows: list[Row], source: str = 'depth6', views: int = 38_400) -> list[str]:
    """List models adapted to one domain and tested on the others; natural images show forgetting."""
    lines = []
    rows = where(rows, source=source, views=views)
    for name in dict.fromkeys(r['name'] for r in rows if r.get('transfer')):
        for domain in LABELED:
            found, cells = where(rows, name=name, domain=domain), []
            for other in LABELED if found else ():
                gains = [r['gain']['one'] if other == domain else r['transfer'][other]['gain'] for r in found]
                cells.append(' / '.join(f'{100 * m:+.1f}' for m in np.array(gains)[..., 0].mean(0)))
            if found:
                lines.append([f'`{name}`, {TITLES[domain]} ({len(found)})', *cells])
    return markdown_table(['recipe, adapted to', *(f'tested on {TITLES[d]}' for d in LABELED)], lines)


def label_free(rows: list[Row]) -> dict[str, Any]:
    """Correlate changes of each label-free score with each gain, and count the harm that it detects."""
    runs = [r for r in rows if r.get('label_free') and r['domain'] in LABELED]
    gains = np.array([[g[0] for g in r['gain']['one']] for r in runs])
    harmed = gains.min(1) < -MARGIN
    found: dict[str, Any] = {'runs': len(runs), 'harmed': int(harmed.sum()), 'chosen': DEFAULT_SCORE}
    found['scores'] = {}
    for key in SCORES:
        change = np.array([r['label_free']['adapted'][key] - r['label_free']['source'][key] for r in runs])
        fell = change <= 0
        row: dict[str, Any] = {'fell': int((harmed & fell).sum()), 'false': int((~harmed & fell).sum())}
        for domain in LABELED:
            at = [i for i, r in enumerate(runs) if r['domain'] == domain]
            row[domain] = [round(float(spearmanr(change[at], gains[at, m])[0]), 2) for m in range(3)]
            row.setdefault('domains', {})[domain] = len(at)
        found['scores'][key] = row
    return found


def label_free_table(found: Mapping[str, Any]) -> list[str]:
    """Return the result of `label_free` as a table."""
    lines = []
    for key, row in found['scores'].items():
        mark = '**' if key == found['chosen'] else ''
        cells = [' / '.join(f'{v:.2f}' for v in row[d]) for d in LABELED]
        caught = f'{row["fell"]} of {found["harmed"]}'
        false = f'{row["false"]} of {found["runs"] - found["harmed"]}'
        lines.append([f'{mark}{SCORES[key].title}{mark}', *cells, caught, false])
    header = ['score', *(TITLES[d] for d in LABELED), 'fell where harm was done', 'fell elsewhere']
    return markdown_table(header, lines)


def main(file: Path, folder: Path) -> None:
    """Write the tables."""
    rows, methods = read(file), ' / '.join(METHODS)
    found = label_free(rows)
    with atomic_path(folder / 'label_free.json') as part:
        part.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    sections = {
        'Do no harm: the default of `explora-geo adapt`': (
            'Gains in points over the source, mean over seeds with 95 % intervals over images and seeds. '
            'Minutes are of two cores without AVX-512 at 10 views/s.',
            harm(rows),
        ),
        'Recipes, from the six blocks, 6,400 views': (
            'Gains in points over the source. `anchor-wP` whitens by the power P (the default: 0.5), '
            "`D` is DINOv2's objective, `+anchorW` the anchor beside it with W times its weights.",
            recipes(rows),
        ),
        'The same from the supervised ViT-Ti/16': ('', recipes(rows, 'vit_ti16')),
        'The same from the distilled ViT-Ti/16': ('', recipes(rows, 'distilled')),
        'Carried over, and kept': (
            f'Gains in points by {methods} after 38,400 views, in brackets the seeds. '
            ' Natural images are what the source was made of: a loss there is forgetting.',
            transfer(rows),
        ),
        'Which label-free score follows the gain?': (
            f'Rank correlations of its change with the gain by {methods}, over {found["runs"]} '
            'adaptations, good and bad; harm is a loss of more than one point in any of the three.',
            label_free_table(found),
        ),
    }
    text = (
        '# Short adaptations on four domains\n\n'
        'Made on an NVIDIA H200 (the oriented run on two CPU cores) by `python -m benchmarks.study`; '
        '`runs.jsonl` holds every run.\n'
    )
    for title, (note, table) in sections.items():
        text += '\n'.join([f'\n## {title}', '', *([note, ''] if note else []), *table, ''])
    with atomic_path(folder / 'README.md') as part:
        part.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main(*map(Path, sys.argv[1:]))
