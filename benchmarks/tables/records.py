"""Results as JSON lines, one per row and seed, appended atomically; and Markdown tables of them."""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
#: Settings that all seeds of a row share unless its configuration changed.
_SETTINGS = 'model source adaptation tuning steps batch tune_steps labels images precision'.split()


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append a JSON-ready record under a lock, replace a torn last line, and sync to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'ab+', buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        if content and not content.endswith(b'\n'):
            file.truncate(content.rfind(b'\n') + 1)
        file.write((json.dumps(record) + '\n').encode())
        os.fsync(file)


def read(path: Path) -> list[Record]:
    """Return the records of a file without an incomplete last line; empty if there is no file."""
    found = []
    lines = path.read_text(encoding='utf-8').splitlines(keepends=True) if path.is_file() else []
    for number, line in enumerate(lines, 1):
        if not line.endswith('\n'):
            break
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}, line {number} is damaged ({error.msg}): remove the line') from error
    return found


def latest(records: Iterable[Record]) -> list[Record]:
    """Return the last record of each row and seed, in order of first appearance.

    Seeds whose settings differ from the row's last record are left out: averaging over both would be
    meaningless.
    """
    found: dict[tuple[Any, ...], Record] = {}
    settings: dict[tuple[Any, ...], list[Any]] = {}
    for record in records:
        row = (record['table'], record['row'])
        found[*row, record['seed']] = record
        settings[row] = _settings_of(record)
    return [record for (*row, _), record in found.items() if _settings_of(record) == settings[tuple(row)]]


def _settings_of(record: Record) -> list[Any]:
    return [*map(record.get, _SETTINGS), sorted(record['scores']), record.get('learning_rates', {})]


def by_row(records: Sequence[Record], table: str) -> dict[str, list[Record]]:
    """Group a table's records by row, seeds in order."""
    found: dict[str, list[Record]] = {}
    for record in sorted(latest(records), key=lambda r: r['seed']):
        if record['table'] == table:
            found.setdefault(record['row'], []).append(record)
    return found


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table; missing trailing cells are blank."""

    def line(cells: Sequence[str]) -> str:
        filled = [*cells, *[''] * (len(header) - len(cells))]
        return '|' + ''.join(f' {cell} |' if cell else ' |' for cell in filled)

    return [line(header), '|' + '---|' * len(header), *map(line, rows)]
