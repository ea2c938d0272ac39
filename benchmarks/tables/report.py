"""Reports of a table at a scale: Markdown, CSV and torchgeo-bench's rows, the published value beside each."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from explora_geo.checkpoints import atomic_path
from explora_geo.evaluation import Budget, ProbeProtocol
from explora_geo.evaluation.protocol import ProbeScore, describe_absent
from explora_geo.evaluation.report import BENCH_COLUMNS, bench_csv

from .jobs import why_not
from .plots import draw_plots
from .records import Record, by_row, latest
from .rows import CLAIMS, Row, Table
from .scales import Scale
from .summary import MARGIN, Spread, judge_all, paired, score_title, summarise

_COLUMNS = (
    'table row name origin scale seed value published mark dataset stands_in model source adaptation tuning '
    'trainable parameters steps images_seen images_per_s precision seconds peak_memory flops time'
).split()
#: Kilowatt hours, kilograms of CO2, and those of pre-training.
_ENERGY = ('kwh', 'kg', 'pretrain_kg')


def write_report(out: Path, table: Table, scale: Scale, records: Sequence[Record]) -> list[Path]:
    """Write every report of a table from the results of a scale, of any table; returns the files."""
    stem = f'table_{table.id}'
    mine = [r for r in latest(records) if r['table'] == table.id]
    plots = draw_plots(out, stem, table, mine)
    texts = {f'{stem}.md': markdown(table, scale, mine, plots), f'{stem}.csv': to_csv(mine)}
    bench = torchgeo_bench(mine)
    if bench.count('\n') > 1:
        texts[f'{stem}_torchgeo_bench.csv'] = bench
    files = []
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text)
        files.append(out / name)
    return [*files, *plots]


def markdown(table: Table, scale: Scale, records: Sequence[Record], plots: Sequence[Path] = ()) -> str:
    """The report of a table's results, with the pictures beside it."""
    found = by_row(records, table.id)
    marks = {row.published.mark for row in table.rows.values()} | {f.mark for f in table.findings}
    meanings = '; '.join(f'{m}: {CLAIMS[m]}' for m in CLAIMS if m in marks)
    legend = f' {meanings}.' if meanings else ''
    command = f'explora-bench report {table.argument or table.id} --scale {scale.argument or scale.name}'
    lines = [
        f'# Table {table.id} at the scale {scale.name}: {table.title}',
        '',
        f'Made by `{command}`. {_setting(table, scale, records)}',
        f"**The published column is {table.metric} on {table.dataset} with the paper's models; the next one "
        f'was measured here**, mean and 95 % Student interval over seeds and draws of labels.{legend}',
        '',
        *(f'- {note}' for note in table.notes),
        *([''] if table.notes else []),
        *_absent(records),
        *_table(table, scale, found),
    ]
    lines += _findings(table, records)
    lines += _cost(table, found)
    lines += ['', *(f'![{p.stem.replace("_", " ")}]({p.name})' for p in plots)]
    return '\n'.join([*lines, ''])


def _setting(table: Table, scale: Scale, records: Sequence[Record]) -> str:
    stands_in = sorted({r['stands_in'] for r in records if r['stands_in']})
    devices = sorted({r['hardware']['device'] for r in records})
    text = f'{scale.about[0].upper()}{scale.about[1:]}.'
    models = sorted({r['model'] for r in records})
    if models:
        text += f' Rows keep the names of the paper; the backbone here is {", ".join(models)}.'
    if stands_in:
        named = ', '.join(stands_in)
        text += f' {named[0].upper()}{named[1:]} stands in for {table.dataset}.'
    found = [rate.get('search', {}) for r in records for rate in r.get('learning_rates', {}).values()]
    tried = sorted({len(scores) for scores in found if scores})
    if tried:
        count = ' to '.join(map(str, dict.fromkeys((tried[0], tried[-1]))))
        text += f' The learning rate of every row is the best of {count} on held-out training images'
        search = scale.search
        if search and tried[-1] > len(search.factors):
            text += f', one beyond the first {len(search.factors)} if it is clearly better'
        text += '.'
    for strengths in sorted({tuple(r.get('strengths') or ()) for r in records} - {()}):
        text += f' C of the linear probe is the best of {", ".join(f"{c:g}" for c in strengths)}.'
    text += _precisions(records)
    notes = sorted({s.note for s in scale.sources.values() if s.note})
    text += f' Sources: {"; ".join(notes)}.' if notes else ''
    return text + (f' Run on {", ".join(devices)}.' if devices else ' Nothing was run yet.')


def _precisions(records: Sequence[Record]) -> str:
    """In which precision rows trained; rows of different ones are named."""
    found: dict[str, list[str]] = {}
    for record in records:
        if record.get('precision'):
            found.setdefault(record['precision'], []).append(record['name'])
    if len(found) < 2:
        return ''.join(f' Trained in {precision}.' for precision in found)
    named = '; '.join(f'{p}: {", ".join(dict.fromkeys(names))}' for p, names in found.items())
    return f' **Rows ran in different precisions and are not compared across them** ({named}).'


def _absent(records: Sequence[Record]) -> list[str]:
    """Classes that training lacks."""
    found: dict[str, dict[str, int]] = {}
    for record in records:
        found |= record.get('absent') or {}
    return [describe_absent(found), ''] if found else []


def _table(table: Table, scale: Scale, found: dict[tuple[str, str], list[Record]]) -> list[str]:
    here, methods = _scores(table, [r for rows in found.values() for r in rows])
    sourced = any(_source_of(table, table.rows[row], found, origin) for row, origin in found)
    gain = ['gain over its source'] if sourced else []
    header = ['row', f'published, {table.metric}', here, *gain, *map(score_title, methods)]
    header += ['adaptation here', 'trains', 'images seen', 'seeds']
    lines = [f'| {" | ".join(header)} |', '|' + '---|' * len(header)]
    for row in table.rows.values():
        published = '-' if row.added else str(row.published)
        name = f'{row.name} (added)' if row.added else row.name
        keys = [key for key in found if key[0] == row.id]
        if not keys:
            reason = why_not(table, row, scale) or 'not run'
            lines.append(f'| {name} | {published} | {reason} |' + ' |' * (len(header) - 3))
        for key in keys:
            rows = found[key]
            origin = '' if key[1] == 'run' else f' ({key[1]})'
            cells = [name + origin, published, _text(summarise(rows))]
            if gain:
                baseline = _source_of(table, row, found, key[1])
                difference = paired(rows, baseline) if row.adaptation and baseline else None
                cells.append(_text(difference, '+'))
            cells += [_text(summarise(rows, method)) for method in methods]
            first = rows[0]
            share = f'{first["trainable"] / 1e6:.2f}M ({first["trainable"] / first["parameters"]:.0%})'
            cells += [first['adaptation'] or '-', share if first['trainable'] else '-']
            cells += [f'{first["images_seen"]:,}', str(len(rows))]
            lines.append(f'| {" | ".join(cells)} |')
    return lines


def _text(found: Spread | None, sign: str = '') -> str:
    return '-' if found is None else found.text(sign)


def _scores(table: Table, records: Sequence[Record]) -> tuple[str, list[str]]:
    """How the table's value is called here, and the other scores that were measured."""
    methods = list(dict.fromkeys(m for r in records for m in r['scores']))
    measured = next((m for m in methods if all(r['scores'].get(m) == r['value'] for r in records)), None)
    here = f'{table.metric} here' + ('' if measured is None else f' ({score_title(measured)})')
    return here, [m for m in methods if m != measured]


def _findings(table: Table, records: Sequence[Record]) -> list[str]:
    """What every score says of the paper's findings."""
    if not table.findings or not records:
        return []
    here, methods = _scores(table, records)
    titles = [here, *map(score_title, methods)]
    lines = [
        '',
        "## The paper's findings at this scale",
        '',
        f'| finding | of | {" | ".join(titles)} |',
        '|---|---|' + '---|' * len(titles),
    ]
    columns = [judge_all(table, records, key) for key in ('value', *methods)]
    for cells in zip(*columns, strict=True):
        said = [v if d is None else f'{d.text("+")}, {v}' for _, d, v in cells]
        lines.append(f'| {cells[0][0].text} | {cells[0][0].mark} | {" | ".join(said)} |')
    note = (
        "Differences are paired by seed and draw of labels. A verdict needs p < 0.05 after Holm's correction "
        'for the findings of its column'
    )
    if any(f.equal for f in table.findings):
        note += f'; "not below" and "on par" hold where the difference is above -{MARGIN:g} point'
    return [*lines, '', f'{note}.']


def _source_of(
    table: Table, row: Row, found: Mapping[tuple[str, str], list[Record]], origin: str
) -> list[Record]:
    """Records of the row that measures the source of a row as it is, in the same way, if any."""
    for other in table.rows.values():
        keys = ('objective', 'tuning', 'tune', 'last_blocks', 'dataset', 'head')
        same = all(getattr(other, key) == getattr(row, key) for key in keys)
        if same and not other.adaptation and not other.only:
            return found.get((other.id, origin), [])
    return []


def _cost(table: Table, found: dict[tuple[str, str], list[Record]]) -> list[str]:
    """Time, memory, energy and carbon of each row."""
    if not found:
        return []
    lines = [
        '',
        '## What it cost',
        '',
        '| row | s | s/step | images/s | peak memory, MB | Wh | g CO2 | of it pre-training | energy by |',
        '|---|---|---|---|---|---|---|---|---|',
    ]
    for (row, _), rows in found.items():
        known = [r['energy'] for r in rows if r.get('energy')]  # only where there is a meter
        speed = [r['images_per_s'] for r in rows if r['images_per_s']]
        steps = [r['seconds_per_step'] for r in rows if r.get('seconds_per_step')]
        cells = [
            table.rows[row].name,
            f'{_mean([r["seconds"] for r in rows]):,.0f}',
            f'{_mean(steps):.2f}' if steps else '-',
            f'{_mean(speed):,.0f}' if speed else '-',
            f'{max(r["peak_memory"] for r in rows) / 1e6:,.0f}',
            *(f'{1000 * _mean([e[k] for e in known]):.3g}' if known else '-' for k in _ENERGY),
            known[0]['method'] if known else '-',
        ]
        lines.append(f'| {" | ".join(cells)} |')
    return [*lines, '', 'Means over seeds; searches of learning rates are not counted.']


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def to_csv(records: Iterable[Record]) -> str:
    """One line for each row and seed."""
    file = io.StringIO()
    columns = [*_COLUMNS, 'kwh', 'kg_co2', 'energy_method', 'device', 'scores']
    writer = csv.DictWriter(file, columns, restval='', lineterminator='\n', extrasaction='ignore')
    writer.writeheader()
    for record in records:
        energy: dict[str, Any] = record.get('energy') or {}
        writer.writerow(
            {
                **record,
                'kwh': energy.get('kwh', ''),
                'kg_co2': energy.get('kg', ''),
                'energy_method': energy.get('method', ''),
                'device': record['hardware']['device'],
                'scores': '; '.join(f'{k}={v:.3f}' for k, v in record['scores'].items()),
            }
        )
    return file.getvalue()


def torchgeo_bench(records: Iterable[Record]) -> str:
    """torchgeo-bench's rows of what was probed; a header alone if nothing was."""
    lines = [','.join(BENCH_COLUMNS)]
    for record in records:
        details = record.get('details')
        if not details:
            continue
        scores = [ProbeScore(**{**_fields(d), 'budget': Budget.parse(d['budget'])}) for d in details]
        about = {
            'dataset': record['stands_in'] or record['dataset'],
            'name': f'{record["model"]} {record["name"]}',
            'feature_dim': record['feature_dim'],
            'images': record['images'],
            'image_size': '',
            'bands': ['red', 'green', 'blue'],
            'seed': record['seed'],
        }
        lines += bench_csv(scores, ProbeProtocol(), about).splitlines()[1:]
    return '\n'.join([*lines, ''])


def _fields(detail: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in detail.items() if k in ProbeScore._fields}
