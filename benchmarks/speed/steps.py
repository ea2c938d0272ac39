"""Compare training steps and write the table."""

from pathlib import Path
from typing import Any

import torch

from .clock import Times, alternate
from .contenders import find, for_each
from .gemm import count_flops, measure_limit
from .records import add_row, describe, heading
from .setting import Optimised, Setting


def compare_steps(
    out: Path, objective: str, setting: Setting, repeats: int = 5, only: str = '', compiled: bool = False
) -> Path:
    """Step every contender in turns, and tabulate ratios to this package's own step.

    Args:
        out: Folder; rows are added to `speed_steps.jsonl`, and `speed_steps.md` shows all of them.
        objective: `mae` or `dinov2`.
        setting: The work of a step.
        repeats: Rounds that count.
        only: Only contenders in whose name this regular expression is found, and the first.
        compiled: Also steps that compile first.

    Returns:
        The Markdown file.

    Raises:
        ValueError: If the objective is unknown.
    """
    contenders = find(objective, compiled)

    def build(name: str) -> Optimised:
        torch.manual_seed(0)
        return contenders[name](setting)

    steps, absent = for_each(contenders, build, only)
    # Kernels and memory of a GPU take a few steps to be chosen.
    times = alternate(steps, repeats, warmup=1 if setting.device == 'cpu' else 3)
    first, *others = steps
    limit = measure_limit(steps[first], setting.precision)
    row = {
        **describe(objective, setting),
        'only': only,
        'compiled': compiled,
        'repeats': repeats,
        'times': {n: t._asdict() for n, t in times.items()},
        'flops': {first: limit.flops, **{n: count_flops(steps[n]) for n in others}},
        'trained': {n: s.trained for n, s in steps.items()},
        'limit': limit._asdict(),
        'missing': absent,
    }
    return add_row(out / 'speed_steps.jsonl', row, markdown)


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
        'row: above 1 is slower than this package. GFLOP are those of the matrix products: their ratio is '
        'what a step would take if every product ran at the same rate and nothing else took time.',
    ]
    for row in rows:
        limit = row['limit']
        times = {name: Times(**t) for name, t in row['times'].items()}
        first = next(iter(times.values())).median
        lines += [
            *heading(row, f', {row["repeats"]} rounds'),
            '| step | trains, M | seconds | ratio | GFLOP | ratio of them |',
            '|---|---|---|---|---|---|',
        ]
        flops = row.get('flops', {})
        least = flops.get(next(iter(times)), 0)
        for name, t in times.items():
            cells = [name, f'{row["trained"][name] / 1e6:.1f}', t.text(), f'{t.median / first:.2f}']
            known = name in flops
            cells += [f'{flops[name] / 1e9:,.0f}', f'{flops[name] / least:.2f}'] if known else ['-', '-']
            lines.append(f'| {" | ".join(cells)} |')
        lines += [f'| {name} | - | {why} | - | - | - |' for name, why in row['missing'].items()]
        share = limit['flops'] / first / limit['rate']
        lines += [
            '',
            f'Matrix products of the first row, each timed alone, sum to {limit["seconds"]:.3f} s: the step '
            f'takes {first / limit["seconds"]:.2f} times that. They are {limit["flops"] / 1e9:,.0f} GFLOP, '
            f'which the step does at {share:.0%} of the {limit["rate"] / 1e9:,.0f} GFLOP/s of one large '
            'product.',
        ]
    return '\n'.join([*lines, ''])
