"""What rows would cost: shown before anything runs."""

import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from .cost import Cost, pretraining_cost, tuning_cost
from .data import build_data
from .jobs import build_job, why_not
from .meter import describe_machine
from .records import Record, markdown_table
from .rows import Row, Table
from .scales import Scale

_COUNT = re.compile(r'(?P<exact>[\d,]+)|(?P<millions>\d+\.\d{3})M')


class Planned(NamedTuple):
    """A row's plan."""

    row: Row
    reason: str  # why it does not run; empty if it does
    pretrain: Cost | None = None  # also of what released weights stand for; None without any
    tune: Cost | None = None  # None for a probe
    released: str = ''  # released weights that take the place of pre-training
    hours: float | None = None  # device hours at the measured rate; None where no run was measured
    # whether the model has as many parameters as the paper states; None where it states none, or at another
    # scale than the paper's
    agrees: bool | None = None


def matches(stated: str, count: int) -> bool:
    """Whether a number of parameters is the stated one: exact, or in millions to three decimals."""
    found = _COUNT.fullmatch(stated)
    if found is None:
        raise ValueError(f'cannot read the number of parameters {stated!r}: write 15,710,208 or 18.725M')
    if found['exact']:
        return count == int(found['exact'].replace(',', ''))
    return f'{count / 1e6:.3f}' == found['millions']


def plan_rows(table: Table, rows: Sequence[Row], scale: Scale, rate: float | None) -> list[Planned]:
    """Plan rows, at a device's operations per second if known: build models and data without reading any."""
    planned = []
    for row in rows:
        if reason := why_not(table, row, scale):
            planned.append(Planned(row, reason))
            continue
        job = build_job(table, replace(row, released=''), scale)
        for data in (job.data, job.pretrain_data):
            build_data(data)
        released = row.released if scale.published else ''
        pretrain = None if job.recipe is None else pretraining_cost(job)
        tune = tuning_cost(job)
        work = sum(cost.work for cost in (None if released else pretrain, tune) if cost is not None)
        hours = None if rate is None else work / rate / 3600
        agrees = None
        if scale.published and row.trainable and pretrain is not None:
            agrees = matches(row.trainable, pretrain.trainable)
        planned.append(Planned(row, '', pretrain, tune, released, hours, agrees))
    return planned


def measured_rate(records: Iterable[Record]) -> float | None:
    """Operations per second of this machine's device in finished pre-training; None if there is none."""
    device = describe_machine()['hardware']['device']
    rates = [
        r['flops'] / r['images_seen'] * r['images_per_s']
        for r in records
        if r['hardware']['device'] == device and r.get('flops') and r.get('images_per_s')
    ]
    return statistics.median(rates) if rates else None


def show(planned: Sequence[Planned], rate: float | None, seeds: int) -> list[str]:
    """The plan as lines: a table of what runs, without empty columns, and why other rows do not."""
    device = describe_machine()['hardware']['device']
    running = [_cells(p, seeds) for p in planned if not p.reason]
    shown = [key for key in (running[0] if running else ()) if any(cells[key] != '-' for cells in running)]
    return [
        f'{rate / 1e9:,.0f} GFLOP/s of finished runs on {device}.' if rate else f'No run on {device} yet.',
        *markdown_table(shown, [[cells[key] for key in shown] for cells in running]),
        *(f'{p.row.name}: {p.reason}' for p in planned if p.reason),
    ]


def _cells(plan: Planned, seeds: int) -> dict[str, str]:
    cost, tune, released, stated = plan.pretrain, plan.tune, plan.released, plan.row.trainable
    return {
        'row': plan.row.name,
        'trainable': f'{cost.trainable:,}' if cost else '-',
        'stated': {True: f'{stated} ok', False: f'{stated} DIFFERS', None: '-'}[plan.agrees],
        'steps': (released or f'{cost.steps:,} x {cost.batch}') if cost else '-',
        'GFLOP/image': f'{cost.flops / 1e9:,.1f}' if cost else '-',
        'memory': f'{cost.memory / 1e9:.1f} GB' if cost and not released else '-',
        'tuning': f'{tune.trainable:,}, {tune.steps:,} x {tune.batch}' if tune else 'probe',
        'hours': '-' if plan.hours is None else f'{seeds} x {plan.hours:,.2f}',
        'published h': str(plan.row.gpu_hours) if plan.row.gpu_hours.text else '-',
    }


def total_hours(planned: Sequence[Planned], scale: Scale, rate: float, seeds: int) -> float:
    """Device hours of all rows and seeds with searches of learning rates; shared stages count twice."""
    total = seeds * sum(p.hours or 0.0 for p in planned)
    if scale.search is not None:
        for plan in planned:
            trials = (plan.pretrain, scale.search.pretrain_steps), (plan.tune, scale.search.tune_steps)
            work = sum(c.flops * c.batch * min(steps, c.steps) for c, steps in trials if c is not None)
            total += len(scale.search.factors) * work / rate / 3600
    return total
