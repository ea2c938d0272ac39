"""`report.html` of an adaptation, made from `report.json` and pictures.

The page needs no network, holds no script and at most 5 MB. `report.json` is plain JSON. Everything in it
may be missing, and then its part of the page is; a *score* is `{"mean", "low", "high"}` in [0, 1], the ends
of its 95 % interval optional:

- `created`: date and time as text. `version`: of the package.
- `verdict`: `{"outcome", "text", "advice"}`, which `verdict.judge` adds.
- `archive`: what was adapted on: `source` (its path), `kind`, `count`, `size` [height, width] in pixels,
  `bands`, `file_bands`, `dtype`, `low`, `high`, `nodata` (share), `crs`; other keys are kept.
- `model`: what was adapted: `weights`, `backbone`, `parameters`.
- `adaptation`: how: `notation` (`D-ExPLoRA-[L]-r32`), `objective` (`dinov2`, `mae`, `anchor`), `trainable`
  (share), `steps`, `batch_size`, `views`, `image_size`, `precision`, `strength` (0 recommends the source),
  `strength_by` (`labels`, `request`, `label-free` or `default`), `short` (a run that only shows how it goes),
  `stopped` (why early), `measured` (what was tried, the chosen first: `batch_size`, `workers`,
  `images_per_second`, `waited`).
- `scores`: `labels` `{"source", "train", "validation", "test", "classes"}` and `rows`, each with `metric`
  (`knn`, `linear`, `few` or another), `title`, and the scores `source`, `adapted`, `gain` (paired: adapted
  minus source on the same tiles), `best_block` (with its `block`), `turns_source`, `whitened` and
  `turns_adapted` (with their `turns`), `beside` (made beforehand, with its `gain`); `rule`.
  `Comparison.to_dict` gives all of it.
- `quoted`: rivals that were measured elsewhere: `source` (a file), `command` and `rows`, as in `scores`.
- `label_free`: output of `evaluation.compare_backbones` (`source`, `adapted`), `tiles`, `chosen` (a key of
  `label_free.SCORES`), `worth` (a sentence).
- `retention`: `source` of the images and `row`, as in `scores`: what the model still knows.
- `strength`: `x` in [0, 1], `series` `[{"title", "y" (shares)}]`, `chosen`.
- `curves`: `[{"title", "x", "y", "x_label", "start" (value of the source)}]`.
- `skipped`: `"<path>: <reason>"` each.
- `cost`: `seconds` by name, `images_per_second`, `memory` (peak, bytes), `energy` (watt-hours), `device`,
  `adapter_bytes`.
- `next`: commands as text, the first three are shown.

`pictures` (NumPy, kept out of the JSON) are what `compute_pictures` and `reconstruct` return.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment

from explora_geo._atomic import atomic_path
from explora_geo.evaluation.comparison import METHODS
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES
from explora_geo.reports.charts import VARIANTS, curve_chart, score_chart, strength_chart, variant
from explora_geo.reports.pictures import data_uri, feature_colors
from explora_geo.reports.verdict import judge, signed

#: Largest page, bytes.
LIMIT = 5_000_000
#: Skipped files that are listed; all are in report.json.
LISTED = 40


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
        ValueError: If the page is too large.
        OSError: If a file cannot be written.
    """
    # As JSON has it: arrays as lists, paths as text, numbers that are none as null.
    text = json.dumps(report, default=lambda x: x.tolist() if hasattr(x, 'tolist') else str(x))
    content = json.loads(text, parse_constant=lambda name: None)
    content['verdict'] = judge(content)._asdict()
    page = render(content, pictures or {})
    size = len(page.encode())
    if size > LIMIT:
        raise ValueError(
            f'the report takes {size:,} bytes, more than {LIMIT:,}: give fewer pictures or curves'
        )
    texts = {'report.json': json.dumps(content, indent=1), 'report.html': page}
    for name, text in texts.items():
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_text(text, encoding='utf-8')
    return Path(folder) / 'report.html'


def render(report: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    """The page as HTML, from the content of `report.json` with its verdict and the arrays of the pictures."""
    environment = Environment(
        autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = (breakable, counted, duration, ends, measured, number, percent, signed, size_of, steady, tone)
    environment.filters |= {f.__name__: f for f in filters} | {'uri': data_uri}
    template = environment.from_string(files(__package__).joinpath('report.html.j2').read_text('utf-8'))
    short = bool((report.get('adaptation') or {}).get('short'))
    rows = [_titled(_with_quoted(r, report), short) for r in (report.get('scores') or {}).get('rows', [])]
    retention, strength = report.get('retention') or {}, report.get('strength') or {}
    curves = [c for curve in report.get('curves') or [] if (c := _without_gaps(curve))['x']]
    names = {'source': 'source', 'adapted': 'this run, short' if short else 'adapted'}
    names['beside'] = 'made beforehand'
    kinds = {k: v for k, v in names.items() if f'patches_{k}' in pictures}
    return template.render(
        report=report,
        rows=rows,
        row_charts=[score_chart(r, f's{i}') for i, r in enumerate(rows)],
        retention=_titled(retention['row'], short) if retention.get('row') else None,
        label_free_scores=SCORES,
        default_score=DEFAULT_SCORE,
        # Two points are no curve, and are in the table.
        strength=strength_chart(strength, 'k') if len(strength.get('x', [])) > 2 else None,
        curves=[(c['title'], curve_chart(c, f'c{i}')) for i, c in enumerate(curves)],
        after=names['adapted'],
        kinds=kinds,
        pictures=pictures,
        colors=feature_colors(*(pictures[f'patches_{k}'] for k in kinds)) if kinds else (),
        gallery=[data_uri(tile, 128, 82) for tile in pictures.get('gallery', ())],
        listed=LISTED,
    )


def _without_gaps(curve: Mapping[str, Any]) -> dict[str, Any]:
    points = [(x, y) for x, y in zip(curve['x'], curve['y'], strict=True) if y is not None]
    return {**curve, 'x': [x for x, _ in points], 'y': [y for _, y in points]}


def _with_quoted(row: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """A row with the rivals that were measured elsewhere, where it has none of its own."""
    known = (report.get('quoted') or {}).get('rows') or []
    others: Mapping[str, Any] = next((r for r in known if r['metric'] == row['metric']), {})
    free = [k for k in VARIANTS if others.get(k) and k not in ('adapted', 'beside', 'turns_adapted')]
    return {**{k: {**others[k], 'quoted': True} for k in free}, **row}


def _titled(row: Mapping[str, Any], short: bool = False) -> dict[str, Any]:
    """A row with the titles of its scores."""
    titles = {k: variant(k, row[k]) for k in VARIANTS if row.get(k)}
    titles |= {k: f'{titles[k]} \N{DAGGER}' for k in titles if row[k].get('quoted')}
    if short and 'adapted' in titles:
        titles['adapted'] = 'This run, short'
    return {'title': METHODS.get(row['metric'], row['metric']), **row, 'titles': titles}


def counted(value: float | None, what: str) -> str:
    """A number of things, or nothing."""
    return f'{value:,} {what}' if value else ''


def measured(trials: list[Mapping[str, Any]]) -> str:
    """What batch and reading processes were chosen from, the chosen ones first."""
    return '; '.join(
        f'{t["images_per_second"]:.3g} images/s in batches of {t["batch_size"]}, '
        f'{t["workers"] or "no"} process{"es"[: 2 * (t["workers"] != 1)]} reading, '
        f'{100 * t["waited"]:.0f} % of the time waiting for images'
        for t in trials
    )


def percent(score: Mapping[str, Any] | None) -> str:
    """Mean of a score."""
    return '' if not score else f'{100 * score["mean"]:.1f}'


def ends(score: Mapping[str, Any], sign: str = '') -> str:
    """Ends of the interval of a score."""
    low, high = (f'{100 * score[k]:{sign}.1f}'.replace('-', '\N{MINUS SIGN}') for k in ('low', 'high'))
    return f'{low} to {high}'


def tone(gain: Mapping[str, Any]) -> str:
    """Whether a gain lies outside its interval, and on which side."""
    if gain.get('low') is None or gain.get('high') is None:
        return 'same'
    return 'up' if gain['low'] > 0 else 'down' if gain['high'] < 0 else 'same'


def number(value: float | None) -> str:
    """A label-free score."""
    return '' if value is None else f'{value:.1f}' if abs(value) >= 10 else f'{value:.3f}'


def breakable(text: str) -> str:
    """Text that breaks where names have their joints: at capitals, digits and after punctuation."""
    return re.sub(r'(?<=[_/.\-])(?=\w)|(?<=[a-z])(?=[A-Z])', '\u200b', text)


def steady(text: str) -> str:
    """Text in which k-NN, and a gain with its name, stay on one line."""
    return re.sub(r' (?=[+\N{MINUS SIGN}]\d)', '\u00a0', text.replace('k-NN', 'k\u2011NN'))


def size_of(value: float) -> str:
    """Bytes with their unit."""
    for unit in ('bytes', 'kB', 'MB'):
        if value < 1000:
            return f'{value:.3g} {unit}'
        value /= 1000
    return f'{value:.3g} GB'


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 60:
        return f'{seconds:.0f} s'
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f'{minutes} min {rest} s' if rest and minutes < 10 else f'{round(seconds / 60)} min'
    return f'{minutes // 60} h {minutes % 60} min'
