"""`report.html` of an adaptation, made from `report.json` and pictures.

The page needs no network, has no scripts and takes at most 5 MB. `report.json` is plain JSON. Any entry may
be missing, and then so is its part of the page. A *score* is `{"mean", "low", "high"}` in [0, 1]; the ends
of its 95 % interval are optional:

- `created`: date and time as text. `version`: of the package. `next`: commands, three of which are shown.
- `verdict`: `{"outcome", "text", "advice"}`, added by `verdict.judge`.
- `archive`: `source` (its path), `kind`, `count`, `size` [height, width] in pixels, `bands`, `file_bands`,
  `dtype`, `low`, `high`, `nodata` (share), `crs`; other keys are kept. `model`: `weights`, `backbone`,
  `parameters`.
- `adaptation`: `notation` (`D-ExPLoRA-[L]-r32`), `objective` (`dinov2`, `mae`, `anchor`, ...), `trainable`
  (share), `steps`, `batch_size`, `views`, `image_size`, `precision`, `strength` (0 recommends the source),
  `strength_by` (`labels`, `request`, `label-free` or `default`), `short` (a demonstration run), `stopped`
  (reason for an early stop), `measured` (trials, the chosen one first: `batch_size`, `workers`,
  `images_per_second`, `waited`).
- `scores`: output of `Comparison.to_dict`: `labels` `{"source", "train", "validation", "test", "classes"}`,
  `rule`, and `rows`, each with `metric`, `title` and scores by variant; `beside` was adapted beforehand.
- `quoted`: rivals measured elsewhere: `source` (a file), `command` and `rows`, as in `scores`.
- `label_free`: output of `evaluation.compare_backbones` (`source`, `adapted`), `tiles`, `worth` (a sentence).
- `retention`: scores on natural images: their `source` and a `row`, as in `scores`.
- `strength`: `x` in [0, 1], `series` `[{"title", "y" (shares)}]`, `chosen`.
- `curves`: `[{"title", "x", "y", "x_label", "start" (value of the source)}]`.
- `skipped`: `"<path>: <reason>"` each.
- `cost`: `seconds` by name, `images_per_second`, `memory` (peak, bytes), `energy` (watt-hours), `device`,
  `adapter_bytes`.

`pictures` (NumPy, not part of the JSON) are the output of `compute_pictures` and `reconstruct`.
"""

import json
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment
from rich.filesize import decimal

from explora_geo._atomic import write_text
from explora_geo.evaluation.comparison import METHODS
from explora_geo.evaluation.label_free import DEFAULT_SCORE, SCORES
from explora_geo.reports.charts import VARIANTS, curve_chart, score_chart
from explora_geo.reports.pictures import data_uri, feature_colors
from explora_geo.reports.verdict import RIVALS, judge, signed

#: Largest page, bytes.
LIMIT = 5_000_000
#: Number of skipped files to list; report.json has all.
LISTED = 40


def write_report(
    folder: str | Path, report: Mapping[str, Any], pictures: Mapping[str, Any] | None = None
) -> Path:
    """Write `report.json`, including the verdict, and `report.html`.

    Args:
        folder: Run folder.
        report: Content of `report.json`; see the module docstring.
        pictures: Arrays of the pictures; see there. None omits them.

    Returns:
        Path of the page.

    Raises:
        ValueError: If the page is too large.
        OSError: If a file cannot be written.
    """
    # Convert to plain JSON: arrays to lists, paths to text, NaN and infinity to null.
    text = json.dumps(report, default=lambda x: x.tolist() if hasattr(x, 'tolist') else str(x))
    content = json.loads(text, parse_constant=lambda name: None)
    content['verdict'] = judge(content)._asdict()
    page = _render(content, pictures or {})
    size = len(page.encode())
    if size > LIMIT:
        raise ValueError(
            f'the report takes {size:,} bytes, more than {LIMIT:,}: pass fewer pictures or curves'
        )
    for name, text in {'report.json': json.dumps(content, indent=1), 'report.html': page}.items():
        write_text(Path(folder) / name, text)
    return Path(folder) / 'report.html'


def _render(report: Mapping[str, Any], pictures: Mapping[str, Any]) -> str:
    """Render the page as HTML from the content of `report.json`, with its verdict, and the pictures."""
    environment = Environment(
        autoescape=True, undefined=ChainableUndefined, trim_blocks=True, lstrip_blocks=True
    )
    filters = {f.__name__: f for f in (breakable, duration, signed, steady)}
    environment.filters |= {**filters, 'bytes': decimal, 'uri': data_uri}
    template = environment.from_string(files(__package__).joinpath('report.html.j2').read_text('utf-8'))
    short = bool((report.get('adaptation') or {}).get('short'))
    quoted = {row['metric']: row for row in (report.get('quoted') or {}).get('rows') or ()}
    rows = [
        _titled(row, quoted.get(row['metric'], {}), short)
        for row in (report.get('scores') or {}).get('rows', ())
    ]
    retention = (report.get('retention') or {}).get('row')
    curves = []
    for number, curve in enumerate(report.get('curves') or ()):
        points = [(x, y) for x, y in zip(curve['x'], curve['y'], strict=True) if y is not None]
        if points:
            curves.append((curve['title'], curve_chart(curve, points, f'c{number}')))
    names = {'source': 'source', 'adapted': 'this short run' if short else 'adapted'}
    names['beside'] = 'ready-made adapter'
    kinds = {k: v for k, v in names.items() if f'patches_{k}' in pictures}
    return template.render(
        report=report,
        rows=rows,
        row_charts=[score_chart(row, f's{i}') for i, row in enumerate(rows)],
        retention=_titled(retention, {}, short) if retention else None,
        label_free_scores=SCORES,
        default_score=DEFAULT_SCORE,
        curves=curves,
        after=names['adapted'],
        kinds=kinds,
        pictures=pictures,
        colors=feature_colors(*(pictures[f'patches_{k}'] for k in kinds)) if kinds else (),
        gallery=[data_uri(tile, 128, 82) for tile in pictures.get('gallery', ())],
        listed=LISTED,
    )


def _titled(row: Mapping[str, Any], quoted: Mapping[str, Any], short: bool) -> dict[str, Any]:
    """Add free rivals measured elsewhere, and the titles of all scores, to a row."""
    rivals = {key: quoted[key] for key in RIVALS if quoted.get(key) and not row.get(key)}
    row = {'title': METHODS.get(row['metric'], row['metric']), **row, **rivals}
    titles = {}
    for key, (_, _, title) in VARIANTS.items():
        if score := row.get(key):
            block, turns = score.get('block'), score.get('turns')
            title = title.replace('turns', f'{turns} turns') if turns else title
            titles[key] = title + (f' ({block})' if block else '') + ' \N{DAGGER}' * (key in rivals)
    if short and 'adapted' in titles:
        titles['adapted'] = 'This short run'
    return {**row, 'titles': titles}


def breakable(text: str) -> str:
    """Allow line breaks within names: before capitals and after punctuation."""
    return re.sub(r'(?<=[_/.\-])(?=\w)|(?<=[a-z])(?=[A-Z])', '\u200b', text)


def steady(text: str) -> str:
    """Keep k-NN, and a gain with its name, on one line."""
    return re.sub(r' (?=[+\N{MINUS SIGN}]\d)', '\u00a0', text.replace('k-NN', 'k\u2011NN'))


def duration(seconds: float) -> str:
    """Format seconds as seconds, minutes or hours."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f'{seconds:.0f} s'
    return f'{minutes} min' if minutes < 60 else f'{minutes // 60} h {minutes % 60} min'
