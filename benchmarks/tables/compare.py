"""Two rows, or two files of results, side by side."""

from collections.abc import Sequence
from pathlib import Path

from . import records
from .records import Record, by_row
from .summary import Spread, paired, score_title, summarise


def compare(one: str, two: str, results: Path) -> str:
    """Compare two rows, `TABLE:ROW` of the results, by seed, or what two files of results have in common.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a row has no results, or nothing is in common.
    """
    if one.endswith('.jsonl') and two.endswith('.jsonl'):
        return _files(Path(one), Path(two))
    known = records.read(results)
    first, second = (_find(known, name, results) for name in (one, two))
    lines = [
        f'| | {first[0]["name"]} | {second[0]["name"]} | difference |',
        '|---|---|---|---|',
        _line('value', first, second, 'value'),
    ]
    shared = [m for m in first[0]['scores'] if m in second[0]['scores']]
    lines += [_line(score_title(method), first, second, method) for method in shared]
    costs = {
        'trains, millions': ('trainable', 1e-6),
        's': ('seconds', 1.0),
        'images seen': ('images_seen', 1.0),
    }
    for title, (key, factor) in costs.items():
        values = [factor * sum(r[key] for r in rows) / len(rows) for rows in (first, second)]
        lines.append(f'| {title} | {values[0]:,.2f} | {values[1]:,.2f} | {values[0] - values[1]:+,.2f} |')
    lines += [
        '',
        'Differences are the first less the second, paired by seed and draw of labels; intervals are 95 % '
        "Student's.",
    ]
    return '\n'.join([*lines, ''])


def _find(known: Sequence[Record], name: str, results: Path) -> list[Record]:
    table, _, row = name.partition(':')
    found = by_row(known, table)
    rows = found.get((row, 'run')) or next((r for k, r in found.items() if k[0] == row), None)
    if not rows:
        have = ', '.join(dict.fromkeys(f'{r["table"]}:{r["row"]}' for r in known)) or 'none'
        raise ValueError(f'{results} has no results of {name!r}: write TABLE:ROW; it has {have}')
    return rows


def _line(title: str, first: Sequence[Record], second: Sequence[Record], key: str) -> str:
    found = (summarise(rows, key) for rows in (first, second))
    means = ['-' if one is None else one.text() for one in found]
    return f'| {title} | {means[0]} | {means[1]} | {_difference(paired(first, second, key))} |'


def _difference(found: Spread | None) -> str:
    return 'no seed in common' if found is None else found.text('+')


def _files(one: Path, two: Path) -> str:
    for path in (one, two):
        if not path.is_file():
            raise FileNotFoundError(f'no results {path}')
    first, second = records.read(one), records.read(two)
    lines = [f'| row | {one} | {two} | difference |', '|---|---|---|---|']
    for table in dict.fromkeys(r['table'] for r in first):
        ours, theirs = by_row(first, table), by_row(second, table)
        for key in (k for k in ours if k in theirs):
            name = ours[key][0]['name']
            lines.append(_line(f'table {table}, {name}', ours[key], theirs[key], 'value'))
    if len(lines) == 2:
        raise ValueError(f'{one} and {two} have no row in common')
    return '\n'.join([*lines, ''])
