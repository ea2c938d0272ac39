"""Compare training steps and write the table."""

import gc
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.speed import others, ours
from benchmarks.speed.clock import Times, alternate
from benchmarks.speed.gemm import measure_limit
from benchmarks.speed.setting import Contenders, Optimised, Setting
from explora_geo.checkpoints import atomic_path

CONTENDERS: dict[str, Contenders] = {
    'mae': {**ours.MAE_STEPS, **others.MAE_STEPS},
    'dinov2': {**ours.DINOV2_STEPS, **others.DINOV2_STEPS},
}


def compare_steps(out: Path, objective: str, setting: Setting, repeats: int = 5) -> Path:
    """Step every contender in turns, and tabulate ratios to this package's own step.

    Args:
        out: Folder; rows are added to `speed_steps.jsonl`, and `speed_steps.md` shows all of them.
        objective: `mae` or `dinov2`.
        setting: The work of a step.
        repeats: Rounds that count.

    Returns:
        The Markdown file.

    Raises:
        ValueError: If the objective is unknown.
    """
    if objective not in CONTENDERS:
        raise ValueError(f'objective must be one of {", ".join(CONTENDERS)}, got {objective!r}')
    console = Console()
    steps: dict[str, Optimised] = {}
    absent: dict[str, str] = {}
    for name, build in CONTENDERS[objective].items():
        lacking = others.missing(name)
        if lacking:
            absent[name] = f'{lacking} is not installed'
            continue
        torch.manual_seed(0)
        console.print(f'building {name}', markup=False)
        try:
            steps[name] = build(setting)
        except ValueError as error:
            absent[name] = str(error)
    times = alternate(steps, repeats)
    first = next(iter(steps))
    limit = measure_limit(steps[first], setting.precision)
    row = {
        'objective': objective,
        'setting': {
            **{k: str(v) for k, v in vars(setting).items() if k != 'head'},
            'head': vars(setting.head),
        },
        'repeats': repeats,
        'hardware': hardware(setting),
        'torch': torch.__version__,
        'times': {n: t._asdict() for n, t in times.items()},
        'trained': {n: s.trained for n, s in steps.items()},
        'limit': limit._asdict(),
        'missing': absent,
    }
    del steps
    gc.collect()
    return add_row(out / 'speed_steps.jsonl', row, markdown)


def hardware(setting: Setting) -> str:
    """The device and, on a CPU, its threads."""
    if setting.device.startswith('cuda'):
        return torch.cuda.get_device_name()
    return f'{platform.machine()} CPU, {torch.get_num_threads()} thread(s)'


def add_row(path: Path, row: dict[str, Any], table: Callable[[list[dict[str, Any]]], str]) -> Path:
    """Replace the row of the same work, and write the table anew.

    Args:
        path: JSON lines; the table lies beside them.
        row: Result with `objective`, `setting` and `hardware`.
        table: Markdown of all rows.

    Returns:
        The Markdown file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    same = ('objective', 'setting', 'hardware')
    rows = [*(r for r in rows if any(r[k] != row[k] for k in same)), row]
    with atomic_path(path) as temporary:
        temporary.write_text(''.join(json.dumps(r) + '\n' for r in rows))
    report = path.with_suffix('.md')
    with atomic_path(report) as temporary:
        temporary.write_text(table(rows))
    return report


def markdown(rows: list[dict[str, Any]]) -> str:
    """All comparisons as tables.

    Args:
        rows: Results of `compare_steps`.

    Returns:
        Markdown.
    """
    lines = [
        '# Training steps side by side',
        '',
        'Made by `explora-bench speed`: forward, backward and optimiser (and the teacher) on real images, '
        'contenders in turns, median of the rounds with the fastest and slowest. Ratios are to the first '
        'row: above 1 is slower than this package.',
    ]
    for row in rows:
        s, limit = row['setting'], row['limit']
        times = {name: Times(**t) for name, t in row['times'].items()}
        first = next(iter(times.values())).median
        crops = f'2 x {s["image_size"]} + {s["num_local"]} x {s["local_size"]} px crops'
        size = f'{s["image_size"]} px' if row['objective'] == 'mae' else crops
        lines += [
            '',
            f'## {row["objective"]}, {s["model"]}, batch {s["batch"]}, {size}, {s["precision"]}',
            '',
            f'{row["hardware"]}, torch {row["torch"]}, {row["repeats"]} rounds.',
            '',
            '| step | trains, M | seconds | ratio |',
            '|---|---|---|---|',
        ]
        for name, t in times.items():
            lines.append(
                f'| {name} | {row["trained"][name] / 1e6:.1f} | {t.median:.3f} ({t.low:.3f}-{t.high:.3f}) '
                f'| {t.median / first:.2f} |'
            )
        lines += [f'| {name} | - | {why} | - |' for name, why in row['missing'].items()]
        share = limit['flops'] / first / limit['rate']
        lines += [
            '',
            f'Matrix products of the first row, each timed alone, sum to {limit["seconds"]:.3f} s: the step '
            f'takes {first / limit["seconds"]:.2f} times that. They are {limit["flops"] / 1e9:,.0f} GFLOP, '
            f'which the step does at {share:.0%} of the {limit["rate"] / 1e9:,.0f} GFLOP/s of one large '
            'product.',
        ]
    return '\n'.join([*lines, ''])
