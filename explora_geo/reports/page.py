"""`report.html` of an adaptation, made from `report.json` and pictures.

The page needs no network, holds no script and at most 5 MB. `report.json` is plain JSON. Everything in it
may be missing, and then its part of the page is; a *score* is `{"mean", "low", "high"}` in [0, 1], the ends
of its 95 % interval optional:

- `created`: date and time as text. `version`: of the package. `notes`: sentences for the end of the page.
- `verdict`: `{"outcome", "text", "advice"}`; by the scores if missing (see `verdict.judge`).
- `archive`: what was adapted on: `source` (its path), `kind`, `count`, `size` [height, width] in pixels,
  `bands`, `file_bands`, `dtype`, `low`, `high`, `nodata` (share), `crs`; other keys are kept.
- `model`: what was adapted: `weights`, `backbone`, `parameters`, `card` (a sentence).
- `adaptation`: how: `notation` (`D-ExPLoRA-[L]-r32`), `objective` (`dinov2`, `mae`, `anchor`), `trainable`
  (share), `steps`, `batch_size`, `views`, `image_size`, `precision`, `strength` (0 recommends the source),
  `strength_by` (`labels`, `request`, `label-free` or `default`), `short` (a run that only shows how it goes),
  `stopped` (why early), `measured` (what was tried, the chosen first: `batch_size`, `workers`,
  `images_per_second`, `waited`).
- `scores`: `labels` `{"source", "train", "validation", "test", "classes"}` and `rows`, each with `metric`
  (`knn`, `linear`, `few` or another), `title`, `name` (in sentences), and the scores `source`, `adapted`,
  `gain` (paired: adapted minus source on the same tiles), `best_block` (with its `block`), `turns_source`,
  `whitened` and `turns_adapted` (with their `turns`), `beside` (made beforehand, with its `gain`);
  `outcome` and `rule`. `Comparison.to_dict` gives all of it.
- `quoted`: rivals that were measured elsewhere: `source` (a file), `command` and `rows`, as in `scores`.
- `label_free`: output of `evaluation.compare_backbones` (`source`, `adapted`), `tiles`, `chosen` (a key of
  `label_free.SCORES`), `worth` (a sentence).
- `retention`: `source` of the images and `row`, as in `scores`: what the model still knows.
- `strength`: `x` in [0, 1], `series` `[{"title", "y" (shares)}]`, `chosen`.
- `curves`: `[{"title", "x", "y", "x_label", "start" (value of the source)}]`.
- `skipped`: `"<path>: <reason>"` each.
- `cost`: `seconds` by name, `images_per_second`, `memory` (peak, bytes), `energy` (watt-hours), `device`,
  `adapter_bytes`, `model_bytes`.
- `next`: commands as text, the first three are shown.

`pictures` (NumPy, kept out of the JSON): `tiles`, uint8 (N, H, W, 3), and `names`; `patches_<kind>` with kind
`source`, `adapted` and perhaps `beside`, (N, h, w, D); `gallery`, uint8 (G, H, W, 3), `gallery_names`,
`gallery_labels`, `queries`, (Q,), `neighbors_<kind>`, (Q, k), rows of the gallery; `reconstructions`, by
title, uint8 (N, H, W, 3). `compute_pictures` and `reconstruct` make them.
"""

import json
import math
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import ChainableUndefined, Environment

from explora_geo._atomic import atomic_path
from explora_geo.evaluation.comparison import METHODS
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES
from explora_geo.reports.charts import VARIANTS, curve_chart, score_chart, strength_chart, variant
from explora_geo.reports.pictures import check_pictures, data_uri, feature_colors
from explora_geo.reports.verdict import judge, name_of
from explora_geo.reports.wording import (
    about,
    breakable,
    byline,
    cost,
    ends,
    facts,
    number,
    percent,
    signed,
    steady,
    tone,
)

#: Largest page, bytes.
LIMIT = 5_000_000
#: Backbones that are shown, in order.
KINDS = ('source', 'adapted', 'beside')
#: Skipped files that are listed; all are in report.json.
LISTED = 40
# Longest side and JPEG quality of tiles, and of those among neighbors; the first that fits is taken.
_SIZES = ((256, 85, 128, 82), (192, 78, 96, 75), (128, 65, 64, 65), (96, 50, 48, 50))


def write_report(
    folder: str | Path, report: Mapping[str, Any], pictures: Mapping[str, Any] | None = None
) -> Path:
    """Write `report.json`, with the verdict in it, and `report.html`.

    Args:
        folder: Folder of the run.
        report: Content of `report.json`; see the head of this module.
        pictures: Arrays of the pictures; see there. None leaves them out.

    Returns:
        Path of the page.

    Raises:
        ValueError: If pictures do not fit or the page is too large.
        OSError: If a file cannot be written.
    """
    folder, pictures = Path(folder), dict(pictures or {})
    content = _plain(report)
    content['verdict'] = judge(content)._asdict()
    check_pictures(pictures)
    page = ''
    for sizes in _SIZES:
        page = render(content, pictures, sizes)
        if len(page.encode()) <= LIMIT:
            break
    else:
        size = len(page.encode())
        raise ValueError(
            f'the report takes {size:,} bytes, more than {LIMIT:,}: give fewer pictures or curves'
        )
    texts = {'report.json': json.dumps(content, indent=1, allow_nan=False), 'report.html': page}
    for name, text in texts.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text, encoding='utf-8')
    return folder / 'report.html'


def render(
    report: Mapping[str, Any], pictures: Mapping[str, Any], sizes: tuple[int, int, int, int] = _SIZES[0]
) -> str:
    """The page as text.

    Args:
        report: Content of `report.json` with its verdict.
        pictures: Arrays of the pictures.
        sizes: Longest side and JPEG quality of tiles, then of those among neighbors.

    Returns:
        HTML.
    """
    environment = Environment(
        autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        'percent': percent,
        'signed': signed,
        'number': number,
        'ends': ends,
        'tone': tone,
        'breakable': breakable,
        'steady': steady,
    }
    template = environment.from_string(files(__package__).joinpath('report.html.j2').read_text('utf-8'))
    scores = report.get('scores') or {}
    short = bool((report.get('adaptation') or {}).get('short'))
    quoted = report.get('quoted') or {}
    rows = [_titled(_with_quoted(r, quoted), short) for r in scores.get('rows', [])]
    retention = report.get('retention') or {}
    curves, strength = _curves(report), report.get('strength') or {}
    return template.render(
        verdict=report['verdict'],
        report=report,
        byline=byline(report),
        about=about(report),
        facts=facts(report, rows),
        rows=rows,
        row_charts=[score_chart(r, f's{i}') for i, r in enumerate(rows)],
        retention=_titled(retention['row'], short) if retention.get('row') else None,
        label_free=_label_free(report.get('label_free') or {}),
        # Two points are no curve, and are in the table.
        strength=strength_chart(strength, 'k') if len(strength.get('x', [])) > 2 else None,
        curves=[curve_chart(c, f'c{i}') for i, c in enumerate(curves)],
        curve_titles=[c['title'] for c in curves],
        kinds={
            'source': 'source',
            'adapted': 'this run, short' if short else 'adapted',
            'beside': 'made beforehand',
        },
        features=_features(pictures, sizes),
        neighbors=_neighbors(pictures, sizes),
        reconstructions=_reconstructions(pictures, sizes),
        skipped=report.get('skipped') or [],
        listed=LISTED,
        cost=cost(report.get('cost') or {}),
    )


def _curves(report: Mapping[str, Any]) -> list[Any]:
    found = []
    for curve in report.get('curves') or []:
        points = [(x, y) for x, y in zip(curve['x'], curve['y'], strict=True) if y is not None]
        if points:
            found.append({**curve, 'x': [x for x, _ in points], 'y': [y for _, y in points]})
    return found


def _with_quoted(row: Mapping[str, Any], quoted: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the rivals that were measured elsewhere, where it has none of its own."""
    others: Mapping[str, Any] = next(
        (r for r in quoted.get('rows') or [] if r['metric'] == row['metric']), {}
    )
    rivals = {
        k: {**others[k], 'quoted': True} for k in VARIANTS if others.get(k) and k not in ('adapted', 'beside')
    }
    return {**{k: v for k, v in rivals.items() if k != 'turns_adapted'}, **row}


def _titled(row: Mapping[str, Any], short: bool = False) -> dict[str, Any]:
    """A row with its title and that of each of its rivals."""
    titles = {k: variant(k, row[k]) for k in VARIANTS if row.get(k)}
    titles |= {k: f'{titles[k]} \N{DAGGER}' for k in titles if row[k].get('quoted')}
    if short and 'adapted' in titles:
        titles['adapted'] = 'This run, short'
    title = row.get('title') or METHODS.get(row['metric'], row['metric'])
    return {**row, 'title': title, 'name': name_of(row), 'titles': titles}


def _label_free(scores: Mapping[str, Any]) -> dict[str, Any] | None:
    if not scores.get('source') or not scores.get('adapted'):
        return None
    chosen = scores.get('chosen', DEFAULT_SCORE)
    rows = [
        {
            'title': info.title,
            'meaning': info.meaning
            + ('' if info.better == 'neither' else f' {info.better.title()} is better.'),
            'source': scores['source'].get(key),
            'adapted': scores['adapted'].get(key),
            'chosen': key == chosen,
        }
        for key, info in SCORES.items()
        if key in scores['adapted']
    ]
    return {'rows': rows, 'tiles': scores.get('tiles'), 'worth': scores.get('worth')}


def _features(pictures: Mapping[str, Any], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    if 'patches_source' not in pictures or 'patches_adapted' not in pictures:
        return []
    kinds = [k for k in KINDS if f'patches_{k}' in pictures]
    colors = feature_colors(*(pictures[f'patches_{k}'] for k in kinds))
    names = pictures.get('names') or []
    return [
        {
            'name': names[i] if i < len(names) else f'tile {i + 1}',
            'tile': data_uri(tile, *sizes[:2]),
            'seen': [{'kind': k, 'uri': data_uri(c)} for k, c in zip(kinds, found, strict=True)],
        }
        for i, (tile, *found) in enumerate(zip(pictures['tiles'], *colors, strict=True))
    ]


def _neighbors(pictures: Mapping[str, Any], sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    if 'gallery' not in pictures:
        return []
    gallery, labels = pictures['gallery'], pictures.get('gallery_labels') or []
    names = pictures.get('gallery_names') or [f'tile {i + 1}' for i in range(len(gallery))]
    uris = [data_uri(tile, *sizes[2:]) for tile in gallery]

    def card(i: int, query: int) -> dict[str, Any]:
        same = bool(labels) and labels[i] == labels[query]
        label = labels[i] if labels else ''
        return {'uri': uris[i], 'name': names[i], 'label': label, 'same': same}

    found = []
    for row, query in enumerate(np.asarray(pictures['queries']).tolist()):
        strips = []
        for kind in (k for k in KINDS if f'neighbors_{k}' in pictures):
            cards = [card(i, query) for i in np.asarray(pictures[f'neighbors_{kind}'])[row].tolist()]
            strips.append({'kind': kind, 'cards': cards, 'hits': sum(c['same'] for c in cards)})
        found.append({'query': card(query, query), 'strips': strips, 'labeled': bool(labels)})
    return found


def _reconstructions(pictures: Mapping[str, Any], sizes: tuple[int, ...]) -> list[list[dict[str, str]]]:
    stacks = pictures.get('reconstructions') or {}
    columns = [[{'title': k, 'uri': data_uri(p, *sizes[:2])} for p in stack] for k, stack in stacks.items()]
    return [list(cells) for cells in zip(*columns, strict=True)]


def _plain(value: Any) -> Any:
    """A copy as JSON has it: NumPy's numbers as Python's, paths as text, numbers that are none as null."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
