"""Images per second of one process and of several that average their gradients, on this machine."""

import multiprocessing
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from .clock import Times, alternate
from .contenders import find
from .ours import dinov2_step, mae_step
from .records import add_row, describe, heading, table
from .setting import Optimised, Setting

STEPS: dict[str, Callable[..., Optimised]] = {'mae': mae_step, 'dinov2': dinov2_step}
_built: dict[str, Optimised] = {}


def compare_processes(
    out: Path,
    objective: str,
    setting: Setting,
    repeats: int = 5,
    processes: int = 2,
    adaptation: str = '[L]-r32',
) -> Path:
    """Step in one process and in several in turns, each with one thread and the whole batch of the setting.

    Args:
        out: Folder; rows are added to `speed_processes.jsonl`, and `speed_processes.md` shows all of them.
        objective: `mae` or `dinov2`.
        setting: The work of a step of one process.
        repeats: Rounds that count.
        processes: How many beside one.
        adaptation: What trains.

    Returns:
        The Markdown file.

    Raises:
        ValueError: If the objective is unknown.
    """
    find(objective)  # checks the name
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        teams = {}
        for size in (1, processes):
            method = Path(folder) / f'meet_{size}'
            pools = [
                stack.enter_context(ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')))
                for _ in range(size)
            ]
            _all(
                pools,
                [
                    partial(_start, objective, setting, adaptation, rank, size, str(method))
                    for rank in range(size)
                ],
            )
            teams[size] = pools
        steps = {str(size): partial(_all, pools, [_step] * size) for size, pools in teams.items()}
        times = alternate(steps, repeats)
        sizes = teams[1][0].submit(_sizes).result()
        for pools in teams.values():
            _all(pools, [_end] * len(pools))
    described = describe(objective, setting)
    row = {
        **described,
        'setting': {**described['setting'], 'adaptation': adaptation},
        'repeats': repeats,
        'times': {n: t._asdict() for n, t in times.items()},
        **sizes,
    }
    return add_row(out / 'speed_processes.jsonl', row, markdown)


def _all(pools: list[ProcessPoolExecutor], work: list[Callable[[], Any]]) -> None:
    """Have every process do its part at the same time."""
    for future in [pool.submit(part) for pool, part in zip(pools, work, strict=True)]:
        future.result()


def _start(objective: str, setting: Setting, adaptation: str, rank: int, size: int, method: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if size == 1:
        _built['step'] = STEPS[objective](setting, adaptation)
        return
    dist.init_process_group('gloo', init_method=f'file://{method}', rank=rank, world_size=size)
    _built['step'] = STEPS[objective](setting, adaptation, wrap=DistributedDataParallel)
    torch.manual_seed(rank)  # masks of its own


def _step() -> float:
    return _built['step']()


def _sizes() -> dict[str, int]:
    """Bytes that a step reduces, and those of the whole model."""
    step = _built['step']
    return {'reduced': 4 * step.trained, 'model': sum(p.nbytes for p in step.module.parameters())}


def _end() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def markdown(rows: list[dict[str, Any]]) -> str:
    """All measurements as tables.

    Args:
        rows: Results of `compare_processes`.

    Returns:
        Markdown.
    """
    lines = [
        '# One process and several',
        '',
        'Made by `explora-bench processes`: steps of processes of one thread each, which average '
        'the gradients of what trains (gloo, DistributedDataParallel), each with the whole '
        'batch; numbers of processes in turns, median of the rounds with the fastest and slowest.',
    ]
    for row in rows:
        batch, first = int(row['setting']['batch']), row['times']['1']['median']
        cells = []
        for number, values in row['times'].items():
            times = Times(**values)
            gain = int(number) * first / times.median
            cells.append((number, times.text(), f'{int(number) * batch / times.median:.2f}', f'{gain:.2f}'))
        lines += [
            *heading(row, f', {row["repeats"]} rounds, {row["setting"]["adaptation"]}'),
            *table(('processes', 'seconds per step', 'images/s', 'of one process'), cells),
            '',
            f'A step reduces {row["reduced"] / 1e6:.1f} MB of gradients; the objective with its backbone, '
            f'heads or decoder and teacher holds {row["model"] / 1e6:.1f} MB.',
        ]
    return '\n'.join([*lines, ''])
