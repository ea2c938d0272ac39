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
  (share), `steps`, `batch_size`, `views`, `image_size`, `precision`, `strength`, `stopped` (why early).
- `scores`: `labels` `{"source", "train", "validation", "test", "classes"}` and `rows`, each with `metric`
  (`knn`, `linear`, `few` or another), `title`, `name` (in sentences), and the scores `source`, `adapted`,
  `gain` (paired: adapted minus source on the same tiles), `best_block` (with its `block`), `turns_source`
  and `turns_adapted` (with their `turns`); `outcome` and `rule`. `Comparison.to_dict` gives all of it.
- `label_free`: output of `evaluation.compare_backbones` (`source`, `adapted`), `tiles`, `chosen` (a key of
  `label_free.SCORES`), `worth` (a sentence).
- `retention`: `source` of the images and `row`, as in `scores`: what the model still knows.
- `strength`: `x` in [0, 1], `series` `[{"title", "y" (shares)}]`, `chosen`.
- `curves`: `[{"title", "x", "y", "x_label", "start" (value of the source)}]`.
- `skipped`: `"<path>: <reason>"` each.
- `cost`: `seconds` by name, `images_per_second`, `memory` (peak, bytes), `energy` (watt-hours), `device`,
  `adapter_bytes`, `model_bytes`.
- `next`: commands as text, the first three are shown.

`pictures` (NumPy, kept out of the JSON): `tiles`, uint8 (N, H, W, 3), and `names`; `patches_source` and
`patches_adapted`, (N, h, w, D); `gallery`, uint8 (G, H, W, 3), `gallery_names`, `gallery_labels`, `queries`,
(Q,), `neighbors_source` and `neighbors_adapted`, (Q, k), rows of the gallery; `reconstructions`, by title,
uint8 (N, H, W, 3). `compute_pictures` and `reconstruct` make them.
"""

import json
import math
import re
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

#: Largest page, bytes.
LIMIT = 5_000_000
#: Skipped files that are listed; all are in report.json.
LISTED = 40
# Longest side and JPEG quality of tiles, and of those among neighbors; the first that fits is taken.
_SIZES = ((256, 85, 128, 82), (192, 78, 96, 75), (128, 65, 64, 65), (96, 50, 48, 50))
#: What objectives are called; ours must not pass for the paper's.
OBJECTIVES = {
    'dinov2': 'DINOv2 (D-ExPLoRA)',
    'mae': 'MAE (M-ExPLoRA)',
    'anchor': "anchor, explora_geo's own objective, not part of ExPLoRA",
}


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
        'percent': _percent,
        'signed': _signed,
        'number': _number,
        'ends': _ends,
        'tone': _tone,
        'breakable': _breakable,
        'steady': _steady,
    }
    template = environment.from_string(files(__package__).joinpath('report.html.j2').read_text('utf-8'))
    scores = report.get('scores') or {}
    rows = [_titled(r) for r in scores.get('rows', [])]
    retention = report.get('retention') or {}
    curves = _curves(report)
    return template.render(
        verdict=report['verdict'],
        report=report,
        byline=_byline(report),
        about=_about(report),
        facts=_facts(report, rows),
        rows=rows,
        row_charts=[score_chart(r, f's{i}') for i, r in enumerate(rows)],
        retention=_titled(retention['row']) if retention.get('row') else None,
        label_free=_label_free(report.get('label_free') or {}),
        strength=strength_chart(report['strength'], 'k') if report.get('strength') else None,
        curves=[curve_chart(c, f'c{i}') for i, c in enumerate(curves)],
        curve_titles=[c['title'] for c in curves],
        features=_features(pictures, sizes),
        neighbors=_neighbors(pictures, sizes),
        reconstructions=_reconstructions(pictures, sizes),
        skipped=report.get('skipped') or [],
        listed=LISTED,
        cost=_cost(report.get('cost') or {}),
    )


def _curves(report: Mapping[str, Any]) -> list[Any]:
    found = []
    for curve in report.get('curves') or []:
        points = [(x, y) for x, y in zip(curve['x'], curve['y'], strict=True) if y is not None]
        if points:
            found.append({**curve, 'x': [x for x, _ in points], 'y': [y for _, y in points]})
    return found


def _byline(report: Mapping[str, Any]) -> str | None:
    notation = (report.get('adaptation') or {}).get('notation')
    weights = (report.get('model') or {}).get('weights')
    archive = (report.get('archive') or {}).get('source')
    if (report.get('adaptation') or {}).get('objective') == 'anchor':
        notation = f'Anchor {notation or ""} (ours, not ExPLoRA)'
    what = f'{notation or "Adapted"} from {weights}' if weights else notation
    parts = [f'{what or "Adapted"} on {archive}' if archive else what, report.get('created')]
    return ' \N{MIDDLE DOT} '.join(str(p) for p in parts if p) or None


def _titled(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its title and that of each of its rivals."""
    titles = {k: variant(k, row[k]) for k in VARIANTS if row.get(k)}
    title = row.get('title') or METHODS.get(row['metric'], row['metric'])
    return {**row, 'title': title, 'name': name_of(row), 'titles': titles}


def _about(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was adapted on what, as terms and descriptions."""
    archive, model = report.get('archive') or {}, report.get('model') or {}
    how, labels = report.get('adaptation') or {}, (report.get('scores') or {}).get('labels') or {}
    found: list[tuple[str, str | None]] = [
        ('Archive', archive.get('source')),
        ('Images', _images(archive)),
        ('Bands', _bands(archive)),
        ('Values', _values(archive)),
        ('Coordinates', archive.get('crs')),
        ('Source', model.get('weights')),
        (
            'Backbone',
            _joined(model.get('backbone'), _count(model.get('parameters'), 'parameters'), model.get('card')),
        ),
        ('Adaptation', _joined(how.get('notation'), _share(how.get('trainable')))),
        ('Objective', OBJECTIVES.get(how.get('objective', ''), how.get('objective'))),
        ('Length', _length(how)),
        ('Image size', f'{how["image_size"]} px' if how.get('image_size') else None),
        ('Precision', how.get('precision')),
        ('Strength', f'{how["strength"]:g}' if how.get('strength') is not None else None),
        ('Labels for scoring', _labels(labels)),
        ('Stopped early', how.get('stopped')),
    ]
    return [(term, str(text)) for term, text in found if text]


def _joined(*parts: str | None) -> str | None:
    return ', '.join(str(p) for p in parts if p) or None


def _count(value: Any, what: str) -> str | None:
    return None if value is None else f'{value:,} {what}'


def _share(value: float | None) -> str | None:
    return None if value is None else f'{100 * value:.1f} % of the weights train'


def _images(archive: Mapping[str, Any]) -> str | None:
    if not archive.get('count'):
        return None
    kind = {'scenes': 'scenes', 'pack': 'packed tiles'}.get(archive.get('kind', ''), 'tiles')
    size = archive.get('size')
    side = f' of {size[0]} x {size[1]} px'.replace(' x ', ' \N{MULTIPLICATION SIGN} ') if size else ''
    return f'{archive["count"]:,} {kind}{side}'


def _bands(archive: Mapping[str, Any]) -> str | None:
    bands, all_bands = archive.get('bands') or [], archive.get('file_bands') or []
    rest = f' (of {len(all_bands)} in the files)' if len(all_bands) > len(bands) else ''
    return ', '.join(bands) + rest if bands else None


def _values(archive: Mapping[str, Any]) -> str | None:
    values = None
    if archive.get('low') is not None and archive.get('high') is not None:
        values = f'{archive["low"]:.4g} to {archive["high"]:.4g}'
    empty = archive.get('nodata')
    return _joined(archive.get('dtype'), values, f'{100 * empty:.1f} % nodata' if empty else None)


def _length(how: Mapping[str, Any]) -> str | None:
    return _joined(
        _count(how.get('steps'), 'steps'),
        _count(how.get('batch_size'), 'a batch'),
        _count(how.get('views'), 'views'),
    )


def _labels(labels: Mapping[str, Any]) -> str | None:
    parts = [_count(labels.get(k), k) for k in ('train', 'validation', 'test')]
    return _joined(labels.get('source'), _count(labels.get('classes'), 'classes'), *parts)


def _facts(report: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """The few numbers below the verdict."""
    found = []
    for row in rows:
        if row.get('source') and row.get('adapted'):
            ends = (
                f'{100 * row["source"]["mean"]:.1f} \N{RIGHTWARDS ARROW} {100 * row["adapted"]["mean"]:.1f} %'
            )
            found.append({'term': row['title'], 'text': ends})
    found = found[:3]
    count = (report.get('archive') or {}).get('count')
    if count:
        found.append({'term': 'Images', 'text': f'{count:,}'})
    seconds = (report.get('cost') or {}).get('seconds')
    if seconds:
        found.append({'term': 'Time', 'text': _duration(sum(seconds.values()))})
    return found


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


def _features(pictures: Mapping[str, Any], sizes: tuple[int, ...]) -> list[dict[str, str]]:
    if 'patches_source' not in pictures or 'patches_adapted' not in pictures:
        return []
    colors = feature_colors(pictures['patches_source'], pictures['patches_adapted'])
    names = pictures.get('names') or []
    return [
        {
            'name': names[i] if i < len(names) else f'tile {i + 1}',
            'tile': data_uri(tile, *sizes[:2]),
            'source': data_uri(before),
            'adapted': data_uri(after),
        }
        for i, (tile, before, after) in enumerate(zip(pictures['tiles'], *colors, strict=True))
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
        for kind in ('source', 'adapted'):
            cards = [card(i, query) for i in np.asarray(pictures[f'neighbors_{kind}'])[row].tolist()]
            strips.append({'kind': kind, 'cards': cards, 'hits': sum(c['same'] for c in cards)})
        found.append({'query': card(query, query), 'strips': strips, 'labeled': bool(labels)})
    return found


def _reconstructions(pictures: Mapping[str, Any], sizes: tuple[int, ...]) -> list[list[dict[str, str]]]:
    stacks = pictures.get('reconstructions') or {}
    columns = [[{'title': k, 'uri': data_uri(p, *sizes[:2])} for p in stack] for k, stack in stacks.items()]
    return [list(cells) for cells in zip(*columns, strict=True)]


def _cost(cost: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [(name[:1].upper() + name[1:], _duration(s)) for name, s in (cost.get('seconds') or {}).items()]
    for key, term, show in (
        ('images_per_second', 'Speed', lambda v: f'{v:,.1f} images/s'),
        ('memory', 'Peak memory', _size),
        ('energy', 'Energy', lambda v: f'{v:,.1f} Wh'),
        ('device', 'Device', str),
        ('adapter_bytes', 'Adapter file', _size),
        ('model_bytes', 'Whole model', _size),
    ):
        if cost.get(key) is not None:
            found.append((term, show(cost[key])))
    return found


def _percent(score: Mapping[str, Any] | None) -> str:
    return '' if not score else f'{100 * score["mean"]:.1f}'


def _signed(score: Mapping[str, Any] | None) -> str:
    return '' if not score else f'{100 * score["mean"]:+.1f}'.replace('-', '\N{MINUS SIGN}')


def _ends(score: Mapping[str, Any], sign: str = '') -> str:
    low, high = (f'{100 * score[k]:{sign}.1f}'.replace('-', '\N{MINUS SIGN}') for k in ('low', 'high'))
    return f'{low} to {high}'


def _tone(gain: Mapping[str, Any]) -> str:
    """Whether a gain lies outside its interval, and on which side."""
    if gain.get('low') is None or gain.get('high') is None:
        return 'same'
    return 'up' if gain['low'] > 0 else 'down' if gain['high'] < 0 else 'same'


def _number(value: float | None) -> str:
    return '' if value is None else f'{value:.1f}' if abs(value) >= 10 else f'{value:.3f}'


def _breakable(text: str) -> str:
    """Text that breaks where names have their joints: at capitals, digits and after punctuation."""
    return re.sub(r'(?<=[_/.\-])(?=\w)|(?<=[a-z])(?=[A-Z])', '\u200b', text)


def _steady(text: str) -> str:
    """Text in which k-NN, and a gain with its name, stay on one line."""
    return re.sub(r' (?=[+\N{MINUS SIGN}]\d)', '\u00a0', text.replace('k-NN', 'k\u2011NN'))


def _size(value: float) -> str:
    for unit in ('bytes', 'kB', 'MB'):
        if value < 1000:
            return f'{value:.3g} {unit}'
        value /= 1000
    return f'{value:.3g} GB'


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest} s' if rest and minutes < 10 else f'{round(seconds / 60)} min'
    return f'{minutes // 60} h {minutes % 60} min'


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
