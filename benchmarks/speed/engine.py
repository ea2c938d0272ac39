"""Timing in turns, and results: JSON lines with a table of them."""

import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from explora_geo.checkpoints import atomic_path

from ..tables import records


class Times(NamedTuple):
    """Seconds of a step: median, fastest and slowest round."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Times:
    """Median, lowest and highest of measurements."""
    return Times(statistics.median(values), min(values), max(values))


def wait() -> None:
    """Wait for what the GPU was given to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(
    steps: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Times]:
    """Time steps in turns, so that whatever slows the machine slows all of them.

    Every round takes one of each in an order of its own: a step finds caches and memory as the one before
    left them, which must not always be the same one.

    Raises:
        ValueError: If there is no round to count.
    """
    if repeats < 1:
        raise ValueError(f'repeats must be at least 1, got {repeats}')
    order = random.Random(0)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + repeats):
        for name in order.sample(sorted(steps), len(steps)):
            wait()
            start = clock()
            steps[name]()
            wait()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return {name: spread(found) for name, found in seconds.items()}


def hardware(device: str = 'cpu') -> str:
    """The device and, on a CPU, its threads."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name()
    return f'{platform.machine()} CPU, {torch.get_num_threads()} thread(s)'


def add(
    out: Path,
    kind: str,
    about: str,
    setting: Mapping[str, Any],
    times: Mapping[str, Times],
    columns: Mapping[str, Mapping[str, float]] = {},
    missing: Mapping[str, str] = {},
) -> Path:
    """Replace the measurement of the same setting on the same hardware, and write the table anew.

    Args:
        out: Folder of the results: `speed/<kind>.jsonl` and `.md` there.
        kind: The command.
        about: What it measures, in a sentence.
        setting: What tells measurements apart, JSON-ready; `device` if not the CPU.
        times: Seconds by what was timed; the first is what others are compared with.
        columns: Further numbers by heading, which names their unit, and by what was measured.
        missing: Why others were not measured.

    Returns:
        The Markdown file.
    """
    row = {
        'setting': dict(setting),
        'hardware': hardware(str(setting.get('device', 'cpu'))),
        'torch': torch.__version__,
        'times': {name: t._asdict() for name, t in times.items()},
        'columns': {title: dict(values) for title, values in columns.items()},
        'missing': dict(missing),
    }
    path = out / 'speed' / f'{kind}.jsonl'
    same = ('setting', 'hardware')
    rows = [*(r for r in records.read(path) if any(r[k] != row[k] for k in same)), row]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'# {kind}', '', f'Made by `explora-bench {kind}`: {about}']
    for one in rows:
        lines += _section(one)
    texts = {path: ''.join(json.dumps(r) + '\n' for r in rows), path.with_suffix('.md'): '\n'.join(lines)}
    for file, text in texts.items():
        with atomic_path(file) as temporary:
            temporary.write_text(f'{text.rstrip()}\n')
    return path.with_suffix('.md')


def _section(row: dict[str, Any]) -> list[str]:
    """One measurement: its setting, a table, and notes."""
    setting = ', '.join(f'{k} {v}' for k, v in row['setting'].items() if v not in ('', None, False))
    times = {name: Times(**t) for name, t in row['times'].items()}
    head = ['what', *(('seconds (fastest-slowest)', 'ratio') if times else ()), *row['columns']]
    lines = ['', f'## {setting}', '', f'{row["hardware"]}, torch {row["torch"]}.', '']
    lines += [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
    first = next(iter(times.values()), None)
    for name in dict.fromkeys([*times, *(name for values in row['columns'].values() for name in values)]):
        cells = [name]
        if first is not None:
            t = times.get(name)
            cells += ['-', '-'] if t is None else [f'{t.median:.3f} ({t.low:.3f}-{t.high:.3f})']
            cells += [] if t is None else [f'{t.median / first.median:.2f}']
        cells += [number(values.get(name)) for values in row['columns'].values()]
        lines.append(f'| {" | ".join(cells)} |')
    lines += [f'| {name} | {why} |' + ' |' * (len(head) - 2) for name, why in row['missing'].items()]
    return lines


def number(value: float | None) -> str:
    """A number for a table, with three digits or more."""
    return '-' if value is None else f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
