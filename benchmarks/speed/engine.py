"""Side-by-side measurements of training steps; results as JSON lines with a Markdown table."""

import gc
import json
import multiprocessing
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from explora_geo.checkpoints.files import atomic_path

from ..tables import records
from ..tables.meter import Meter
from .others import find, for_each
from .setting import Setting

_Map = Mapping[str, Any]


def wait() -> None:
    """Wait for pending GPU work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def alternate(
    steps: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, clock: Any = time.perf_counter
) -> dict[str, list[float]]:
    """Return the seconds of interleaved steps, fastest first; interleaving spreads slowdowns over all."""
    if repeats < 1:
        raise ValueError(f'repeats must be at least 1, got {repeats}')
    order = random.Random(0)  # a new order each round, since a step inherits the caches of the one before
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warmup + repeats):
        for name in order.sample(sorted(steps), len(steps)):
            wait()
            start = clock()
            steps[name]()
            wait()
            if turn >= warmup:
                seconds[name].append(clock() - start)
    return {name: sorted(times) for name, times in seconds.items()}


def compare_steps(
    out: Path, objective: str, setting: Setting, repeats: int = 5, only: str = '', compiled: bool = False
) -> Path:
    """Time the steps of all contenders in turns; return the Markdown file."""
    contenders = find(objective, compiled)

    def build(name: str) -> Any:
        torch.manual_seed(0)
        return contenders[name](setting)

    steps, absent = for_each(contenders, build, only)
    times = alternate(steps, repeats, warmup=1 if setting.device == 'cpu' else 3)
    median = {name: statistics.median(t) for name, t in times.items()}
    flops = {}
    for name, step in steps.items():
        with FlopCounterMode(display=False) as counter:
            step()
        flops[name] = counter.get_total_flops() / 1e9
    first, least = next(iter(median.values())), next(iter(flops.values()))
    return _add(
        out,
        'speed',
        'forward, backward and optimizer (and the teacher) on real images, contenders in turns; GFLOP by '
        "torch's counter, which knows none of a CPU's fused attention.",
        {**setting.describe(objective), 'only': only, 'compiled': compiled},
        {
            'seconds': median,
            'fastest': {name: t[0] for name, t in times.items()},
            'slowest': {name: t[-1] for name, t in times.items()},
            'ratio': {name: t / first for name, t in median.items()},
            'trains, M': {name: step.trained / 1e6 for name, step in steps.items()},
            'GFLOP': flops,
            'ratio of GFLOP': {name: count / least for name, count in flops.items()},
            'images/s': {name: setting.batch / t for name, t in median.items()},
        },
        absent,
    )


def compare_peaks(
    out: Path, objective: str, setting: Setting, repeats: int = 1, only: str = '', compiled: bool = False
) -> Path:
    """Measure each contender's peak memory growth, from before the model is built."""
    on_gpu = setting.device.startswith('cuda')
    if compiled and not on_gpu:
        raise ValueError('peak memory on a CPU includes the compiler: measure compiled steps on a GPU')
    setting = replace(setting, fused=True)  # store as little as on a GPU; time does not matter here

    def measure(name: str) -> int:
        if on_gpu:  # the allocator counts its own tensors exactly
            return step_peak(objective, name, setting, repeats)
        # glibc: return freed tensors to the system instead of keeping them as gaps in the process.
        with patch.dict('os.environ', MALLOC_MMAP_THRESHOLD_=str(128 * 1024)):
            context = multiprocessing.get_context('spawn')
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                return pool.submit(step_peak, objective, name, setting, repeats).result()

    peaks, absent = for_each(find(objective, compiled), measure, only)
    full = [bytes_ for name, bytes_ in peaks.items() if 'all weights' in name]
    columns = {'GB': {name: bytes_ / 1e9 for name, bytes_ in peaks.items()}}
    if full:
        columns['% of all weights'] = {name: 100 * bytes_ / full[-1] for name, bytes_ in peaks.items()}
    return _add(
        out,
        'peak',
        'weights, gradients, optimizer and activations of one step on real images with fused attention; on a '
        'CPU each contender has a process of its own. Shares are of the last row that trains all weights.',
        {**setting.describe(objective), 'only': only, 'compiled': compiled},
        columns,
        absent,
    )


def step_peak(objective: str, name: str, setting: Setting, repeats: int) -> int:
    """Return peak bytes of steps including optimizer state, as growth of the process or on the GPU."""
    gc.collect()
    before = torch.cuda.memory_allocated() if setting.device.startswith('cuda') else 0
    with Meter() as meter:
        step = find(objective, compiled=True)[name](setting)
        for parameter in step.optimizer.param_groups[0]['params']:
            parameter.grad = torch.zeros_like(parameter)
        step.optimizer.step()
        for _ in range(repeats):
            step()
    return meter.peak_memory - before


def _add(out: Path, kind: str, about: str, setting: _Map, columns: _Map, missing: _Map) -> Path:
    """Add a measurement, replacing one of the same setting and hardware, and rewrite the table."""
    cpu = f'{platform.machine()} CPU, {torch.get_num_threads()} thread(s)'
    row = {
        'setting': dict(setting),
        'hardware': torch.cuda.get_device_name() if setting['device'].startswith('cuda') else cpu,
        'torch': torch.__version__,
        'columns': columns,
        'missing': missing,
    }
    path, same = out / 'speed' / f'{kind}.jsonl', ('setting', 'hardware')
    rows = [*(r for r in records.read(path) if any(r[k] != row[k] for k in same)), row]
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f'# {kind}', '', f'Made by `explora-bench {kind}`: {about}']
    for one in rows:
        said = ', '.join(f'{k} {v}' for k, v in one['setting'].items() if v not in ('', None, False))
        numbers = one['columns'].values()
        names = dict.fromkeys(name for values in numbers for name in values)
        cells = [[name, *(_number(values.get(name)) for values in numbers)] for name in names]
        lines += ['', f'## {said}', '', f'{one["hardware"]}, torch {one["torch"]}.', '']
        lines += records.markdown_table(['what', *one['columns']], [*cells, *one['missing'].items()])
    texts = {path: ''.join(json.dumps(r) + '\n' for r in rows), path.with_suffix('.md'): '\n'.join(lines)}
    for file, text in texts.items():
        with atomic_path(file) as temporary:
            temporary.write_text(f'{text.rstrip()}\n')
    return path.with_suffix('.md')


def _number(value: float | None) -> str:
    """Format a number with three digits or more."""
    return '-' if value is None else f'{value:,.0f}' if abs(value) >= 100 else f'{value:.3g}'
