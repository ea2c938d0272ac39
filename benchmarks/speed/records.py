"""Results of comparisons: JSON lines, and a table of them."""

import json
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from explora_geo.checkpoints import atomic_path

from ..tables import records
from .setting import Setting


def hardware(device: str) -> str:
    """The device and, on a CPU, its threads."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name()
    return f'{platform.machine()} CPU, {torch.get_num_threads()} thread(s)'


def describe(objective: str, setting: Setting) -> dict[str, Any]:
    """What a row of steps says of its work and of the machine."""
    return {
        'objective': objective,
        'setting': {
            **{k: str(v) for k, v in vars(setting).items() if k != 'head'},
            'head': vars(setting.head),
        },
        'hardware': hardware(setting.device),
        'torch': torch.__version__,
    }


def heading(row: dict[str, Any], note: str = '') -> list[str]:
    """Lines above the table of a row of steps.

    Args:
        row: Result that was begun by `describe`.
        note: What follows the machine.
    """
    s = row['setting']
    crops = f'2 x {s["image_size"]} + {s["num_local"]} x {s["local_size"]} px crops'
    size = f'{s["image_size"]} px' if row['objective'] == 'mae' else crops
    return [
        '',
        f'## {row["objective"]}, {s["model"]}, batch {s["batch"]}, {size}, {s["precision"]}',
        '',
        f'{row["hardware"]}, torch {row["torch"]}{note}.',
        '',
    ]


def begin(objective: str, device: str = 'cpu', **setting: Any) -> dict[str, Any]:
    """What a row of other work than steps says of it and of the machine."""
    return {
        'objective': objective,
        'setting': setting,
        'hardware': hardware(device),
        'torch': torch.__version__,
    }


def section(title: str, row: dict[str, Any], note: str = '') -> list[str]:
    """Lines above the table of such a row.

    Args:
        title: Heading.
        row: Result that was begun by `begin`.
        note: What follows the machine.
    """
    return ['', f'## {title}', '', f'{row["hardware"]}, torch {row["torch"]}{note}.', '']


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A table's lines in Markdown."""
    lines = [f'| {" | ".join(map(str, cells))} |' for cells in (head, *rows)]
    return [lines[0], '|' + '---|' * len(head), *lines[1:]]


def add_row(path: Path, row: dict[str, Any], table: Callable[[list[dict[str, Any]]], str]) -> Path:
    """Replace the row of the same work, and write the table anew.

    Args:
        path: JSON lines; the table lies beside them.
        row: Result with `objective`, `setting`, `hardware` and, of some contenders, `only` and `compiled`.
        table: Markdown of all rows.

    Returns:
        The Markdown file.
    """
    same = ('objective', 'setting', 'hardware', 'only', 'compiled')
    rows = [*(r for r in records.read(path) if any(r.get(k) != row.get(k) for k in same)), row]
    with atomic_path(path) as temporary:
        temporary.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    report = path.with_suffix('.md')
    with atomic_path(report) as temporary:
        temporary.write_text(table(rows))
    return report
