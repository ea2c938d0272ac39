"""What rows would cost: shown before anything runs."""

import re
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from rich.console import Group
from rich.markup import escape
from rich.table import Table as View

from explora_geo.adaptation import explora
from explora_geo.devices import pick_device
from explora_geo.models import create_vit
from explora_geo.trainers.kernels import faster_precision
from explora_geo.trainers.optim import build_optimizer

from .cost import Cost, objective_of, pretraining_cost, tuning_cost
from .data import build_data
from .jobs import Job, build_job, why_not
from .meter import describe_machine
from .records import Record
from .rows import Row, Table
from .scales import Scale

_COUNT = re.compile(r'(?P<exact>[\d,]+)|(?P<millions>\d+\.\d{3})M')


class Planned(NamedTuple):
    """A row's plan.

    Attributes:
        row: The row.
        reason: Why it does not run; empty if it does.
        pretrain: Cost of pre-training, also of what released weights stand for; None without any.
        tune: Cost of tuning; None for a probe.
        released: Released weights that take the place of pre-training.
        hours: Device hours at the measured rate; None where no step was timed.
        agrees: Whether the model has as many parameters as the paper states; None where it states none, or
            at another scale than the paper's.
    """

    row: Row
    reason: str
    pretrain: Cost | None = None
    tune: Cost | None = None
    released: str = ''
    hours: float | None = None
    agrees: bool | None = None


def matches(stated: str, count: int) -> bool:
    """Whether a number of parameters is the stated one: exact, or in millions to three decimals.

    Raises:
        ValueError: If the text is neither.
    """
    found = _COUNT.fullmatch(stated)
    if found is None:
        raise ValueError(f'cannot read the number of parameters {stated!r}: write 15,710,208 or 18.725M')
    if found['exact']:
        return count == int(found['exact'].replace(',', ''))
    return f'{count / 1e6:.3f}' == found['millions']


def plan_rows(table: Table, rows: Sequence[Row], scale: Scale, rate: float | None) -> list[Planned]:
    """Plan rows: build every model on the meta device, every schedule and every data module.

    Nothing of the data sets is read; `rehearse` runs the rows on tiny files of their formats.

    Args:
        table: Their table.
        rows: The rows.
        scale: With which models, images and lengths.
        rate: Operations per second of a device, from timed steps, or None.

    Returns:
        One plan per row.

    Raises:
        ValueError: If a model, schedule or data module cannot be built.
    """
    planned = []
    for row in rows:
        reason = why_not(table, row, scale)
        if reason:
            planned.append(Planned(row, reason))
            continue
        job = build_job(table, replace(row, released=''), scale)
        for data in (job.data, job.pretrain_data):
            build_data(data)
        released = row.released if scale.published else ''
        pretrain = None if job.recipe is None else pretraining_cost(job)
        tune = tuning_cost(job, job.data.images)
        work = sum(c.flops * c.images for c in (None if released else pretrain, tune) if c is not None)
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


def time_steps(job: Job, steps: int, batch: int) -> float:
    """Operations per second of a row's own model, of random numbers, in pre-training on this device.

    Args:
        job: A row with a recipe.
        steps: Steps that are timed, after one that is not.
        batch: Images per step.

    Returns:
        Operations per second, the median of the steps.
    """
    assert job.recipe is not None
    cost, recipe, source = pretraining_cost(job), job.recipe, job.source
    device = pick_device('auto')
    options = {**objective_of(recipe).backbone_options, **job.backbone_options}
    vit = create_vit(source.model, **options)
    explora(vit, recipe.adaptation.with_extra(vit.patch_embed.fresh))
    objective = recipe.factory(vit).to(device)
    objective.plan(recipe.steps, recipe.steps)
    optimizer = build_optimizer(objective, recipe.optim, recipe.batch_size)
    tokenizer = vit.patch_embed
    side = tokenizer.grid_size[0] * tokenizer.patch_size
    shape = (batch, *([3] if tokenizer.kind == 'temporal' else []), len(tokenizer.bands), side, side)
    sample = {'image': torch.randn(shape, device=device)}
    if tokenizer.kind == 'temporal':
        sample['timestamps'] = torch.zeros(batch, 3, 3, device=device)
    seconds = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=faster_precision() == 'bf16-mixed'):
            torch.stack(list(objective(sample, 0).values())).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == 'cuda':
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return cost.flops * batch / statistics.median(seconds[1:])


def show(table: Table, scale: Scale, planned: Sequence[Planned], rate: float | None, seeds: int) -> Group:
    """The plan for the terminal: a table of what runs, without empty columns, and why other rows do not."""
    device = describe_machine()['hardware']['device']
    about = f'{rate / 1e9:,.0f} GFLOP/s timed on {device}' if rate else 'no step timed on this device yet'
    title = f'Table {table.id} at the scale {scale.name}: {table.title}; {about}'
    names = 'trainable', 'stated', 'steps', 'rate', 'GFLOP/image', 'memory', 'tuning', 'hours', 'published h'
    running = [(p.row.name, _cells(p, seeds)) for p in planned if not p.reason]
    shown = [i for i in range(len(names)) if any(cells[i] != '-' for _, cells in running)]
    view = View(title=escape(title), title_justify='left')
    view.add_column('row')
    for i in shown:
        view.add_column(names[i], justify='right')
    for name, cells in running:
        view.add_row(*(escape(cell) for cell in (name, *(cells[i] for i in shown))))
    return Group(view, *(escape(f'{p.row.name}: {p.reason}') for p in planned if p.reason))


def _cells(plan: Planned, seeds: int) -> list[str]:
    hours = plan.row.gpu_hours
    published = str(hours) if hours.text else '-'
    cells = ['-'] * 6
    if plan.pretrain is not None:
        cost = plan.pretrain
        stated = {True: f'{plan.row.trainable} ok', False: f'{plan.row.trainable} DIFFERS', None: '-'}
        cells = [
            f'{cost.trainable:,}',
            stated[plan.agrees],
            plan.released or f'{cost.steps:,} x {cost.batch}',
            '-' if plan.released else f'{cost.learning_rates[1]:.1e}',
            f'{cost.flops / 1e9:,.1f}',
            '-' if plan.released else f'{cost.memory / 1e9:.1f} GB',
        ]
    tune = plan.tune
    cells.append('probe' if tune is None else f'{tune.trainable:,}, {tune.steps:,} x {tune.batch}')
    cells.append('-' if plan.hours is None else f'{seeds} x {plan.hours:,.2f}')
    return [*cells, published]


def total_hours(planned: Sequence[Planned], scale: Scale, seeds: int) -> float | None:
    """Device hours of all rows and seeds with the searches of their learning rates; None without a rate.

    A stage that several rows share is counted with each.
    """
    known = [p for p in planned if p.hours is not None]
    if not known:
        return None
    total = seeds * sum(p.hours or 0.0 for p in known)
    if scale.search is not None:
        tries = len(scale.search.factors)
        for plan in known:
            parts = ((plan.pretrain, scale.search.pretrain_steps), (plan.tune, scale.search.tune_steps))
            work = sum(c.flops * c.images for c, _ in parts if c is not None)
            trial = sum(c.flops * c.batch * min(steps, c.steps) for c, steps in parts if c is not None)
            total += tries * (plan.hours or 0.0) * trial / work if work else 0.0
    return total
