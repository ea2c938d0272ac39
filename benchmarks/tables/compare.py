"""Side-by-side comparison of two rows or two results files."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from .records import Record, by_row, markdown_table, read
from .summary import paired, score_title, summarise, text_of

_COSTS = {'trains, millions': ('trainable', 1e-6), 's': ('seconds', 1.0), 'images seen': ('images_seen', 1.0)}


def compare(one: str, two: str, results: Path) -> str:
    """Compare two rows (`TABLE:ROW` in the results) by seed, or the rows that two results files share."""
    if one.endswith('.jsonl') and two.endswith('.jsonl'):
        return _files(Path(one), Path(two))
    known = read(results)
    first, second = (_find(known, name, results) for name in (one, two))
    shared = [m for m in first[0]['scores'] if m in second[0]['scores']]
    lines = [_line('value', first, second), *(_line(score_title(m), first, second, m) for m in shared)]
    for title, (key, factor) in _COSTS.items():
        a, b = (factor * fmean(r[key] for r in rows) for rows in (first, second))
        lines.append([title, f'{a:,.2f}', f'{b:,.2f}', f'{a - b:+,.2f}'])
    table = markdown_table(['', first[0]['name'], second[0]['name'], 'difference'], lines)
    note = 'Differences are the first less the second, paired by seed and draw of labels; intervals are 95 % '
    return '\n'.join([*table, '', f"{note}Student's.", ''])


def _find(known: Sequence[Record], name: str, results: Path) -> list[Record]:
    table, _, row = name.partition(':')
    found = by_row(known, table)
    if row not in found:
        have = ', '.join(dict.fromkeys(f'{r["table"]}:{r["row"]}' for r in known)) or 'none'
        raise ValueError(f'{results} has no results for {name!r}: use TABLE:ROW, available: {have}')
    return found[row]


def _line(title: str, first: Sequence[Record], second: Sequence[Record], key: str = 'value') -> list[str]:
    difference = paired(first, second, key)
    said = 'no seed in common' if difference is None else difference.text('+')
    return [title, *(text_of(summarise(rows, key)) for rows in (first, second)), said]


def _files(one: Path, two: Path) -> str:
    for path in (one, two):
        if not path.is_file():
            raise FileNotFoundError(f'results file {path} does not exist')
    first, second = read(one), read(two)
    lines = []
    for table in dict.fromkeys(r['table'] for r in first):
        ours, theirs = by_row(first, table), by_row(second, table)
        for key in (k for k in ours if k in theirs):
            lines.append(_line(f'table {table}, {ours[key][0]["name"]}', ours[key], theirs[key]))
    if not lines:
        raise ValueError(f'{one} and {two} have no rows in common')
    return '\n'.join([*markdown_table(['row', str(one), str(two), 'difference'], lines), ''])
