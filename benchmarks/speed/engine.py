"""Timing in turns, and results: JSON lines with a table of them."""

import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
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
    return {n: Times(statistics.median(s), min(s), max(s)) for n, s in seconds.items()}


def hardware(device: str) -> str:
    """The device and, on a CPU, its threads."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name()
    return f'{platform.machine()} CPU, {torch.get_num_threads()} thread(s)'


def add(
    out: Path,
    kind: str,
    about: str,
    setting: Mapping[str, Any],
    columns: Mapping[str, Mapping[str, float]],
    missing: Mapping[str, str],
) -> Path:
    """Replace the measurement of the same setting on the same hardware, and write the table anew.

    Args:
        out: Folder of the results: `speed/<kind>.jsonl` and `.md` there.
        kind: The command.
        about: What it measures, in a sentence.
        setting: What tells measurements apart, JSON-ready; with the `device`.
        columns: Numbers by heading, which names their unit, and by what was measured.
        missing: Why others were not measured.

    Returns:
        The Markdown file.
    """
    row = {
        'setting': dict(setting),
        'hardware': hardware(setting['device']),
        'torch': torch.__version__,
        'columns': {title: dict(values) for title, values in columns.items()},
        'missing': dict(missing),
    }
    path, same = out / 'speed' / f'{kind}.jsonl', ('setting', 'hardware')
    rows = [*(r for r in records.read(path) if any(r[k] != row[k] for k in same)), row]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'# {kind}', '', f'Made by `explora-bench {kind}`: {about}']
    for one in rows:
        said = ', '.join(f'{k} {v}' for k, v in one['setting'].items() if v not in ('', None, False))
        head = ['what', *one['columns']]
        lines += ['', f'## {said}', '', f'{one["hardware"]}, torch {one["torch"]}.', '']
        lines += [f'| {" | ".join(head)} |', '|' + '---|' * len(head)]
        for name in dict.fromkeys(name for values in one['columns'].values() for name in values):
            cells = [name, *(number(values.get(name)) for values in one['columns'].values())]
            lines.append(f'| {" | ".join(cells)} |')
        lines += [f'| {name} | {why} |' + ' |' * (len(head) - 2) for name, why in one['missing'].items()]
    texts = {path: ''.join(json.dumps(r) + '\n' for r in rows), path.with_suffix('.md'): '\n'.join(lines)}
    for file, text in texts.items():
        with atomic_path(file) as temporary:
            temporary.write_text(f'{text.rstrip()}\n')
    return path.with_suffix('.md')


def number(value: float | None) -> str:
    """A number for a table, with three digits or more."""
    return '-' if value is None else f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
