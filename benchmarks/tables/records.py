"""Results as JSON lines: one for each row and seed, appended in one piece."""

import fcntl
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]
#: What seeds of a row share as long as nobody changes how it runs.
_SETTINGS = (
    *('model', 'source', 'adaptation', 'tuning', 'steps', 'batch', 'tune_steps', 'labels', 'images'),
    'precision',
)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Append one JSON-ready record in one call under a lock, on disk before this returns.

    What an interrupted writer left of a line is removed first.
    """
    line = (json.dumps(record) + '\n').encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        content = os.pread(handle, os.fstat(handle).st_size, 0)
        if content and not content.endswith(b'\n'):
            os.ftruncate(handle, content.rfind(b'\n') + 1)
        os.write(handle, line)
        os.fsync(handle)
    finally:
        os.close(handle)


def read(path: Path) -> list[Record]:
    """Records of a file, without a last line that was never finished; none if there is no file.

    Raises:
        ValueError: If another line is damaged.
    """
    if not path.is_file():
        return []
    found = []
    for number, line in enumerate(path.read_text().splitlines(keepends=True), 1):
        if not line.endswith('\n'):
            break
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f'{path}, line {number} is damaged ({error.msg}): remove the line') from error
    return found


def latest(records: Iterable[Record]) -> list[Record]:
    """The last record of each row, origin and seed, in the order of their first.

    Seeds that ran by other settings than the last record of their row are left out: a mean over both would
    be of nothing.
    """
    found: dict[tuple[Any, ...], Record] = {}
    settings: dict[tuple[Any, ...], list[Any]] = {}
    for record in records:
        row = (record['table'], record['row'], record['origin'])
        found[*row, record['seed']] = record
        settings[row] = _settings_of(record)
    return [record for (*row, _), record in found.items() if _settings_of(record) == settings[tuple(row)]]


def _settings_of(record: Record) -> list[Any]:
    rates = record.get('learning_rates', {})
    return [*(record.get(key) for key in _SETTINGS), sorted(record['scores']), rates]


def by_row(records: Sequence[Record], table: str) -> dict[tuple[str, str], list[Record]]:
    """Records of a table by row and origin, seeds in order."""
    found: dict[tuple[str, str], list[Record]] = {}
    for record in sorted(latest(records), key=lambda r: r['seed']):
        if record['table'] == table:
            found.setdefault((record['row'], record['origin']), []).append(record)
    return found
