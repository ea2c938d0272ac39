"""Reports of a table at a scale: Markdown, CSV and torchgeo-bench rows, beside the published values."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from explora_geo.checkpoints import atomic_path
from explora_geo.evaluation import Budget
from explora_geo.evaluation.protocol import describe_absent

from .jobs import why_not
from .plots import draw_plots
from .records import Record, by_row, latest, markdown_table
from .rows import CLAIMS, Row, Table
from .scales import Scale
from .summary import MARGIN, judge_all, paired, score_title, summarise, text_of

_COLUMNS = (
    'table row name origin scale seed value published mark dataset stands_in model source adaptation tuning '
    'trainable parameters steps images_seen images_per_s precision seconds peak_memory flops time'
).split()
#: Columns of torchgeo-bench's result files that apply to frozen classification.
_BENCH_COLUMNS = (
    'dataset method metric_name metric_value ci_lower ci_upper feature_dim best_c best_lr best_batch_size '
    'n_train n_val n_test seed model name normalization image_size interpolation partition bands '
    'c_range_start c_range_stop c_range_num merge_val bootstrap'
).split()
# torchgeo-bench's `linear` is a logistic regression.
_BENCH_METHODS = {'knn': 'knn5', 'logistic': 'linear', 'linear': 'linear_sgd'}
_Found = Mapping[str, Sequence[Record]]


def write_report(out: Path, table: Table, scale: Scale, records: Sequence[Record]) -> list[Path]:
    """Write all reports of a table from a scale's results, which may include other tables; return files."""
    stem = f'table_{table.id}'
    mine = [r for r in latest(records) if r['table'] == table.id]
    plots = draw_plots(out, stem, table, mine)
    texts = {f'{stem}.md': markdown(table, scale, mine, plots), f'{stem}.csv': to_csv(mine)}
    bench = torchgeo_bench(mine)
    if bench.count('\n') > 1:
        texts[f'{stem}_torchgeo_bench.csv'] = bench
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text)
    return [*(out / name for name in texts), *plots]


def markdown(table: Table, scale: Scale, records: Sequence[Record], plots: Sequence[Path] = ()) -> str:
    """Return the report of a table's results, with plots."""
    found = by_row(records, table.id)
    marks = {row.published.mark for row in table.rows.values()} | {f.mark for f in table.findings}
    meanings = '; '.join(f'{m}: {CLAIMS[m]}' for m in CLAIMS if m in marks)
    command = f'explora-bench report {table.argument or table.id} --scale {scale.argument or scale.name}'
    absent: dict[str, dict[str, int]] = {}
    for record in records:
        absent |= record.get('absent') or {}
    lines = [
        f'# Table {table.id} at the scale {scale.name}: {table.title}',
        '',
        f'Made by `{command}`. {_setting(table, scale, records)}',
        f"**The published column is {table.metric} on {table.dataset} with the paper's models; the next one "
        'was measured here**, mean and 95 % Student interval over seeds and draws of labels.'
        + (f' {meanings}.' if meanings else ''),
        '',
        *(f'- {note}' for note in table.notes),
        *([''] if table.notes else []),
        *([describe_absent(absent), ''] if absent else []),
        *_rows(table, scale, found),
        *_findings(table, records),
        *_cost(table, found),
        *['', *(f'![{p.stem.replace("_", " ")}]({p.name})' for p in plots), ''],
    ]
    return '\n'.join(lines)


def _setting(table: Table, scale: Scale, records: Sequence[Record]) -> str:
    """Describe how and where rows ran."""
    said = [f'{scale.about[0].upper()}{scale.about[1:]}.']
    models = sorted({r['model'] for r in records})
    if models:
        said.append(f'Rows keep the names of the paper; the backbone here is {", ".join(models)}.')
    stands_in = ', '.join(sorted({r['stands_in'] for r in records if r['stands_in']}))
    if stands_in:
        said.append(f'{stands_in[0].upper()}{stands_in[1:]} stands in for {table.dataset}.')
    found = [rate.get('search', {}) for r in records for rate in r.get('learning_rates', {}).values()]
    tried = sorted({len(scores) for scores in found if scores})
    if tried:
        count = ' to '.join(map(str, dict.fromkeys((tried[0], tried[-1]))))
        text = f'The learning rate of every row is the best of {count} on held-out training images'
        first = len(scale.search.factors) if scale.search else tried[-1]
        more = f', one beyond the first {first} if it is clearly better' if tried[-1] > first else ''
        said.append(f'{text}{more}.')
    for strengths in sorted({tuple(r.get('strengths') or ()) for r in records} - {()}):
        said.append(f'C of the linear probe is the best of {", ".join(f"{c:g}" for c in strengths)}.')
    precisions: dict[str, dict[str, None]] = {}
    for record in records:
        if record.get('precision'):
            precisions.setdefault(record['precision'], {})[record['name']] = None
    if len(precisions) > 1:
        named = '; '.join(f'{p}: {", ".join(names)}' for p, names in precisions.items())
        said.append(f'**Rows ran in different precisions and are not compared across them** ({named}).')
    else:
        said += [f'Trained in {precision}.' for precision in precisions]
    notes = sorted({s.note for s in scale.sources.values() if s.note})
    said += [f'Sources: {"; ".join(notes)}.'] if notes else []
    devices = ', '.join(sorted({r['hardware']['device'] for r in records}))
    return ' '.join([*said, f'Run on {devices}.' if devices else 'Nothing was run yet.'])


def _rows(table: Table, scale: Scale, found: _Found) -> list[str]:
    here, methods = _scores(table, [r for rows in found.values() for r in rows])
    sourced = any(_source_of(table, table.rows[row], found) for row in found)
    header = ['row', f'published, {table.metric}', here, *(['gain over its source'] if sourced else [])]
    header += [*map(score_title, methods), 'adaptation here', 'trains', 'images seen', 'seeds']
    lines = []
    for row in table.rows.values():
        published = '-' if row.added else str(row.published)
        name = f'{row.name} (added)' if row.added else row.name
        if row.id not in found:
            lines.append([name, published, why_not(table, row, scale) or 'not run'])
            continue
        rows = found[row.id]
        cells, first = [name, published, text_of(summarise(rows))], rows[0]
        if sourced:
            baseline = _source_of(table, row, found)
            cells.append(text_of(paired(rows, baseline) if row.adaptation and baseline else None, '+'))
        cells += [text_of(summarise(rows, method)) for method in methods]
        share = f'{first["trainable"] / 1e6:.2f}M ({first["trainable"] / first["parameters"]:.0%})'
        cells += [first['adaptation'] or '-', share if first['trainable'] else '-']
        lines.append([*cells, f'{first["images_seen"]:,}', str(len(rows))])
    return markdown_table(header, lines)


def _scores(table: Table, records: Sequence[Record]) -> tuple[str, list[str]]:
    """Return the title of the table's value here, and the other measured scores."""
    methods = list(dict.fromkeys(m for r in records for m in r['scores']))
    measured = next((m for m in methods if all(r['scores'].get(m) == r['value'] for r in records)), None)
    here = f'{table.metric} here' + ('' if measured is None else f' ({score_title(measured)})')
    return here, [m for m in methods if m != measured]


def _findings(table: Table, records: Sequence[Record]) -> list[str]:
    """List the verdict of every score on the paper's findings."""
    if not table.findings or not records:
        return []
    here, methods = _scores(table, records)
    judged = [judge_all(table, records, key) for key in ('value', *methods)]
    lines = [
        [one[0][0].text, one[0][0].mark, *(v if d is None else f'{d.text("+")}, {v}' for _, d, v in one)]
        for one in zip(*judged, strict=True)
    ]
    note = (
        "Differences are paired by seed and draw of labels. A verdict needs p < 0.05 after Holm's correction "
        'for the findings of its column'
    )
    if any(f.equal for f in table.findings):
        note += f'; "not below" and "on par" hold where the difference is above -{MARGIN:g} point'
    header = ['finding', 'of', here, *map(score_title, methods)]
    title = "## The paper's findings at this scale"
    return ['', title, '', *markdown_table(header, lines), '', f'{note}.']


def _source_of(table: Table, row: Row, found: _Found) -> Sequence[Record]:
    """Return the records of the row that evaluates this row's unchanged source the same way, if any."""
    keys = ('objective', 'tuning', 'tune', 'last_blocks', 'dataset', 'head')
    for other in table.rows.values():
        same = all(getattr(other, key) == getattr(row, key) for key in keys)
        if same and not other.adaptation and not other.only:
            return found.get(other.id, [])
    return []


def _cost(table: Table, found: _Found) -> list[str]:
    """List time, memory, energy and carbon of each row."""
    lines = []
    for row, rows in found.items():
        known = [r['energy'] for r in rows if r.get('energy')]  # only where there is a meter
        times = [
            _mean(rows, key, spec)
            for key, spec in (('seconds', ',.0f'), ('seconds_per_step', '.2f'), ('images_per_s', ',.0f'))
        ]
        energy = [_mean(known, key, '.3g', 1000) for key in ('kwh', 'kg', 'pretrain_kg')]
        memory = f'{max(r["peak_memory"] for r in rows) / 1e6:,.0f}'
        method = known[0]['method'] if known else '-'
        lines.append([table.rows[row].name, *times, memory, *energy, method])
    header = ['row', 's', 's/step', 'images/s', 'peak memory, MB', 'Wh', 'g CO2', 'of it pre-training']
    end = ['', 'Means over seeds; searches of learning rates are not counted.']
    return ['', '## What it cost', '', *markdown_table([*header, 'energy by'], lines), *end] if lines else []


def _mean(records: Sequence[Record], key: str, spec: str, factor: float = 1.0) -> str:
    """Return the mean of the known values, or a dash."""
    values = [factor * r[key] for r in records if r.get(key) is not None]
    return f'{fmean(values):{spec}}' if values else '-'


def to_csv(records: Iterable[Record]) -> str:
    """Return one CSV line per row and seed."""
    file = io.StringIO()
    columns = [*_COLUMNS, 'kwh', 'kg_co2', 'energy_method', 'device', 'scores']
    writer = csv.DictWriter(file, columns, restval='', lineterminator='\n', extrasaction='ignore')
    writer.writeheader()
    for record in records:
        energy = record.get('energy') or {}
        more = {'kwh': energy.get('kwh', ''), 'kg_co2': energy.get('kg', '')}
        more |= {'energy_method': energy.get('method', ''), 'device': record['hardware']['device']}
        scores = '; '.join(f'{k}={v:.3f}' for k, v in record['scores'].items())
        writer.writerow({**record, **more, 'scores': scores})
    return file.getvalue()


def torchgeo_bench(records: Iterable[Record]) -> str:
    """Return torchgeo-bench rows of all probes; only a header if nothing was probed.

    Columns without a counterpart here stay empty.
    """
    file = io.StringIO()
    writer = csv.DictWriter(file, _BENCH_COLUMNS, restval='', lineterminator='\n')
    writer.writeheader()
    for record in records:
        for detail in record.get('details') or ():
            setting, method, images = detail['settings'][0], detail['method'], record['images']
            row = {
                'dataset': record['stands_in'] or record['dataset'],
                'method': _BENCH_METHODS[method],
                'metric_name': 'accuracy',
                'metric_value': detail['mean'],
                'ci_lower': detail['interval'][0],
                'ci_upper': detail['interval'][1],
                'feature_dim': record.get('feature_dim'),
                'best_c': setting.rpartition('C=')[2] if method == 'logistic' else '',
                'best_lr': setting.rpartition('lr ')[2] if method == 'linear' else '',
                'best_batch_size': 256 if method == 'linear' else '',
                'n_train': detail['labels'],
                'n_val': images['val'],
                'n_test': images['test'],
                'seed': record['seed'],
                'model': 'explora_geo.models.ViT',
                'name': f'{record["model"]} {record["name"]}',
                'normalization': 'dataset',
                'partition': _partition(Budget.parse(detail['budget'])),
                'bands': 'rgb',
                'merge_val': False,
                'bootstrap': 1000,
            }
            writer.writerow(row)
    return file.getvalue()


def _partition(budget: Budget) -> str:
    """Return torchgeo-bench's name for a part of the training set."""
    if budget.per_class is not None:
        return f'{budget.per_class}_per_class'
    digits = '.2f' if round(budget.share, 2) == budget.share else 'g'  # different shares need different names
    return 'default' if budget.full else f'{budget.share:{digits}}x_train'
