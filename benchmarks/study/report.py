"""Tables of the study: python -m benchmarks.study.report RUNS.jsonl FOLDER."""

import json
import sys
from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from explora_geo.evaluation.comparison import MARGIN
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES

Row = Mapping[str, Any]
METHODS = ('k-NN', 'linear probe', '10 labels a class')
MINUTES = {640: 1, 6_400: 10, 38_400: 60}
TITLES = {'eurosat': 'EuroSAT', 'aid': 'AID', 'natural': 'natural images', 'naip': 'NAIP places'}


def read(file: Path) -> list[Row]:
    """Rows of a file of lines, without those that failed."""
    rows = [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines()]
    return [r for r in rows if r['group'] != 'failed']


def combined(rows: Iterable[Row], method: int, variant: str = 'one') -> tuple[float, float, float]:
    """Mean gain over seeds, half of its 95 % interval over test images and seeds, and the worst seed."""
    gains = np.array([r['gain'][variant][method] for r in rows])
    seeds = 1.96 * gains[:, 0].std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
    return float(gains[:, 0].mean()), float(np.hypot(gains[:, 1].mean(), seeds)), float(gains[:, 0].min())


def harm(rows: list[Row], name: str = 'anchor', source: str = 'depth6') -> str:
    """The default at three lengths on every domain, and what costs nothing beside it."""
    lines = [
        '| domain, views (minutes) | seeds | ' + ' | '.join(METHODS) + ' | worst of all |',
        '|---|---|---|---|---|---|',
    ]
    free = {r['key']: r['scores'] for r in rows if r['group'] == 'source'}
    for domain, title in TITLES.items():
        scores = free[f'{source}.{domain}']
        lines.append(
            f'| **{title}**: source | | ' + ' | '.join(f'{100 * x:.1f}' for x in scores['one']) + ' | |'
        )
        blocks = {k: v for k, v in scores.items() if k.startswith('block')}
        free_rows = {'mean of 4 turns': scores['turns4'], 'whitened by half': scores['white0.5']}
        free_rows |= {'whitened': scores['white1'], 'whitened, mean of 4 turns': scores['white1x4']}
        if blocks:
            best = max(blocks, key=lambda k: sum(blocks[k]))
            free_rows = {f'block {int(best.removeprefix("block")) + 1}, its best': blocks[best], **free_rows}
        for what, values in free_rows.items():
            gains = [f'{100 * (a - b):+.1f}' for a, b in zip(values, scores['one'], strict=True)]
            lines.append(f'| source, {what} | | {" | ".join(gains)} | {min(gains, key=float)} |')
        for (views, minutes), (recipe, how) in product(
            MINUTES.items(), {name: 'adapted', f'{name}-oriented': 'adapted, `oriented: true`'}.items()
        ):
            found = [
                r
                for r in rows
                if (r.get('name'), r.get('source'), r.get('domain'), r.get('views'))
                == (recipe, source, domain, views)
            ]
            if found:
                cells = [combined(found, i) for i in range(3)]
                texts = [f'**{100 * m:+.1f}** ± {100 * h:.1f}' for m, h, _ in cells]
                worst = 100 * min(c[2] for c in cells)
                lines.append(
                    f'| {how}, {views:,} ({minutes}) | {len(found)} | {" | ".join(texts)} | {worst:+.1f} |'
                )
    return '\n'.join(lines)


def recipes(rows: list[Row], source: str = 'depth6', views: int = 6_400) -> str:
    """All recipes at one length, best first."""
    domains = ('eurosat', 'aid')
    found: dict[str, dict[str, list[Row]]] = {}
    for r in rows:
        if r.get('source') == source and r.get('views') == views and r.get('domain') in domains:
            found.setdefault(r['name'], {}).setdefault(r['domain'], []).append(r)
    whole = {name: parts for name, parts in found.items() if len(parts) == len(domains)}
    means = {
        name: [combined(parts[d], i)[0] for d in domains for i in range(3)] for name, parts in whole.items()
    }
    lines = ['| recipe | ' + ' | '.join(f'{TITLES[d]}: {m}' for d in domains for m in METHODS) + ' |']
    lines.append('|---' * 7 + '|')
    for name in sorted(means, key=lambda n: -sum(means[n])):
        texts = []
        for domain in domains:
            for i in range(3):
                mean, half, _ = combined(whole[name][domain], i)
                texts.append(f'{100 * mean:+.1f} ± {100 * half:.1f}')
        lines.append(f'| `{name}` | {" | ".join(texts)} |')
    return '\n'.join(lines)


def transfer(rows: list[Row], source: str = 'depth6', views: int = 38_400) -> str:
    """What was learned on one domain, tested on the others; natural images say what was forgotten."""
    domains = ('eurosat', 'aid', 'natural')
    lines = [
        '| recipe, adapted to | ' + ' | '.join(f'tested on {TITLES[d]}' for d in domains) + ' |',
        '|---' * 4 + '|',
    ]
    names = dict.fromkeys(
        r['name'] for r in rows if r.get('transfer') and r['source'] == source and r['views'] == views
    )
    for name in names:
        for domain in domains:
            found = [
                r
                for r in rows
                if (r.get('name'), r.get('source'), r.get('domain'), r.get('views'))
                == (name, source, domain, views)
            ]
            if not found:
                continue
            cells = []
            for other in domains:
                gains = [r['gain']['one'] if other == domain else r['transfer'][other]['gain'] for r in found]
                means = np.array(gains)[..., 0].mean(0)
                cells.append(' / '.join(f'{100 * m:+.1f}' for m in means))
            lines.append(f'| `{name}`, {TITLES[domain]} ({len(found)}) | {" | ".join(cells)} |')
    return '\n'.join(lines)


def label_free(rows: list[Row]) -> dict[str, Any]:
    """How the change of each label-free score follows each gain, and how much harm it shows."""
    runs = [r for r in rows if r.get('label_free') and r['domain'] in ('eurosat', 'aid', 'natural')]
    harmed = np.array([min(g[0] for g in r['gain']['one']) < -MARGIN for r in runs])
    found: dict[str, Any] = {
        'runs': len(runs),
        'harmed': int(harmed.sum()),
        'chosen': DEFAULT_SCORE,
        'scores': {},
    }
    for key in SCORES:
        change = np.array([r['label_free']['adapted'][key] - r['label_free']['source'][key] for r in runs])
        row: dict[str, Any] = {
            'fell': int((harmed & (change <= 0)).sum()),
            'false': int((~harmed & (change <= 0)).sum()),
        }
        for domain in ('eurosat', 'aid', 'natural'):
            at = [i for i, r in enumerate(runs) if r['domain'] == domain]
            gains = np.array([[g[0] for g in runs[i]['gain']['one']] for i in at])
            row[domain] = [round(float(spearmanr(change[at], gains[:, m])[0]), 2) for m in range(3)]
            row.setdefault('domains', {})[domain] = len(at)
        found['scores'][key] = row
    return found


def label_free_table(found: Mapping[str, Any]) -> str:
    """The same as a table."""
    domains = ('eurosat', 'aid', 'natural')
    lines = [
        '| score | '
        + ' | '.join(TITLES[d] for d in domains)
        + ' | fell where harm was done | fell elsewhere |'
    ]
    lines.append('|---' * 6 + '|')
    for key, row in found['scores'].items():
        cells = [' / '.join(f'{v:.2f}' for v in row[d]) for d in domains]
        caught, false = (
            f'{row["fell"]} of {found["harmed"]}',
            f'{row["false"]} of {found["runs"] - found["harmed"]}',
        )
        mark = '**' if key == found['chosen'] else ''
        lines.append(f'| {mark}{SCORES[key].title}{mark} | {" | ".join(cells)} | {caught} | {false} |')
    return '\n'.join(lines)


def main(file: Path, folder: Path) -> None:
    """Write the tables."""
    rows = read(file)
    found = label_free(rows)
    (folder / 'label_free.json').write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
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
            f'Gains in points by {" / ".join(METHODS)} after 38,400 views, in brackets the seeds. '
            ' Natural images are what the source was made of: a loss there is forgetting.',
            transfer(rows),
        ),
        'Which label-free score follows the gain?': (
            f'Rank correlations of its change with the gain by {" / ".join(METHODS)}, over {found["runs"]} '
            'adaptations, good and bad; harm is a loss of more than one point in any of the three.',
            label_free_table(found),
        ),
    }
    text = '\n\n'.join(
        f'## {title}\n\n{note}\n\n{table}'.replace('\n\n\n\n', '\n\n')
        for title, (note, table) in sections.items()
    )
    made = (
        'Made on an NVIDIA H200 (the oriented run on two CPU cores) by `python -m benchmarks.study`; '
        '`runs.jsonl` holds every run.'
    )
    (folder / 'README.md').write_text(
        f'# Short adaptations on four domains\n\n{made}\n\n{text}\n', encoding='utf-8'
    )


if __name__ == '__main__':
    main(*map(Path, sys.argv[1:]))
