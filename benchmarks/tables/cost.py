"""Cost of rows before they run: exact parameter counts, estimated operations and memory."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import nn

from explora_geo.adaptation import explora, trainable_summary
from explora_geo.models import ViT, create_vit
from explora_geo.models.weights import all_weights
from explora_geo.objectives import MAE, DINOv2, Objective
from explora_geo.trainers.options import ADAPTATIONS

from .data import build_data
from .jobs import Job, build_job, split_batch, why_not
from .meter import describe_machine
from .recipe import OBJECTIVES
from .records import Record, markdown_table
from .rows import Row, Table
from .scales import Scale

# Bytes per token that a block stores for the backward pass, in units of its width, at 16 bits and without
# attention matrices (Korthikanti et al. 2022, equation 2).
_KEPT_WIDTHS = 34


@dataclass(frozen=True)
class Cost:
    """Cost of pre-training or tuning."""

    trainable: int  # trainable parameters of backbone and decoder; heads are not counted, as in the paper
    flops: float  # floating point operations per image, forward and backward, of backbone and decoder
    memory: float  # estimated bytes at one batch on one device: weights, gradients, AdamW, activations
    steps: int  # optimizer steps
    batch: int  # images per step

    @property
    def work(self) -> float:
        """Operations of the whole run."""
        return self.flops * self.steps * self.batch


def forward_flops(width: int, depth: int, tokens: int, mlp_ratio: float = 4.0) -> float:
    """Return the operations of transformer blocks on a sequence; a multiply-add counts as two."""
    matrices = 2 * tokens * (4 + 2 * mlp_ratio) * width**2
    attention = 4 * tokens**2 * width
    return depth * (matrices + attention)


def _backbone(job: Job) -> tuple[ViT, int]:
    """Return a row's backbone on the meta device and its parameter count without the mask token."""
    options = OBJECTIVES[job.recipe.objective].backbone_options if job.recipe else {}
    options = {'learned_position': job.source.learned_position, **job.backbone_options, **options}
    with torch.device('meta'):
        vit = create_vit(job.source.model, **options)
    return vit, vit.num_parameters - (0 if vit.mask_token is None else vit.mask_token.numel())


def pretraining_cost(job: Job) -> Cost:
    """Return the cost of a row's pre-training, from its model on the meta device.

    A decoder counts as pre-trained if the weights include one; otherwise it trains in full.
    """
    assert job.recipe is not None
    recipe, weights, (vit, parameters) = job.recipe, job.source.weights, _backbone(job)
    anew = vit.patch_embed.fresh if weights else ()
    explora(vit, recipe.adaptation.with_extra(anew))
    if vit.mask_token is not None:  # the objective checks whether it was ever trained
        trained = torch.ones(1, vit.embed_dim, device='cpu')
        vit.mask_token = nn.Parameter(trained, vit.mask_token.requires_grad)
    with torch.device('meta'):
        objective = recipe.factory(vit)
        entry = all_weights().get(weights)
        if isinstance(objective, MAE) and entry is not None and entry.meta['decoder']:
            # With other bands, the decoder is that of the same backbone for three bands.
            whole = MAE(create_vit(job.source.model)) if anew else objective
            objective.load_pretrained(whole.extra_state())
    parts = {k: n for k, n in trainable_summary(vit).items() if k != 'mask_token'}
    if recipe.adaptation.full:
        parts = {'everything': parameters}
    elif isinstance(objective, MAE) and anew:  # in the other cases the paper counts only the encoder
        parts |= {f'decoder {k}': n for k, n in trainable_summary(objective.decoder).items()}
    tokens = _tokens(vit, objective)
    # Forward pass, plus gradients of all activations and of trainable weights; the teacher sees global crops.
    share = min(1.0, sum(p.numel() for p in vit.parameters() if p.requires_grad) / parameters)
    forward = [forward_flops(width, depth, n) for n, width, depth in tokens]
    flops = sum(forward) * (2 + share) + (sum(forward[:2]) if isinstance(objective, DINOv2) else 0.0)
    per_device, *_ = split_batch(job.scale, job.pretrain_data, recipe.batch_size)
    held, training = (
        sum({id(p): p.numel() for p in objective.parameters() if p.requires_grad or frozen}.values())
        for frozen in (True, False)
    )
    kept = _KEPT_WIDTHS * per_device * sum(n * width * depth for n, width, depth in tokens)
    return Cost(sum(parts.values()), flops, 4 * held + 12 * training + kept, recipe.steps, recipe.batch_size)


def tuning_cost(job: Job) -> Cost | None:
    """Return the cost of a row's tuning without the head; None for a probe or an unknown length."""
    if job.row.tuning in ('probe', 'none'):
        return None
    settings, steps = job.tune, job.tune.steps
    if steps is None:
        if job.data.images is None or settings.epochs is None:
            return None
        steps = settings.epochs * (job.data.images // settings.batch_size)
    vit, parameters = _backbone(job)
    explora(vit, ADAPTATIONS[job.row.tuning])
    trainable = sum(trainable_summary(vit).values())
    tokens, (per_device, *_) = _sequence(vit), split_batch(job.scale, job.data, settings.batch_size)
    memory = 4 * parameters + 12 * trainable + _KEPT_WIDTHS * per_device * tokens * vit.embed_dim * vit.depth
    flops = forward_flops(vit.embed_dim, vit.depth, tokens) * (2 + trainable / parameters)
    return Cost(trainable, flops, memory, steps, settings.batch_size)


def _sequence(vit: ViT) -> int:
    return 1 + vit.patch_embed.num_patches * vit.patch_embed.num_slots


def _tokens(vit: ViT, objective: Objective) -> list[tuple[int, int, int]]:
    """Return the sequences with gradients per image: tokens, width and blocks."""
    if isinstance(objective, MAE):
        decoder: Any = objective.decoder
        kept = 1 + int((_sequence(vit) - 1) * (1 - objective.mask_ratio))
        own = _sequence(vit), int(decoder.mask_token.shape[-1]), len(decoder.blocks)
        return [(kept, vit.embed_dim, vit.depth), own]
    assert isinstance(objective, DINOv2) and objective.views is not None
    views, found = objective.views, []
    for count, side in ((2, views.global_size), (views.num_local, views.local_size)):
        assert side is not None  # set by the objective
        length = 1 + vit.patch_embed.num_slots * (side // vit.patch_embed.patch_size) ** 2
        found += [(length, vit.embed_dim, vit.depth)] * count
    return found


class Planned(NamedTuple):
    """A row's plan."""

    row: Row
    reason: str  # why it does not run; empty if it runs
    pretrain: Cost | None = None  # also for released weights that replace this training; None without any
    tune: Cost | None = None  # None for a probe
    released: str = ''  # released weights that replace pre-training
    hours: float | None = None  # device hours at the measured rate; None where no run was measured
    agrees: bool | None = None  # whether the parameter count matches the paper's; None if unknown


def matches(stated: str, count: int) -> bool:
    """Return whether a parameter count matches the stated one: exact, or in millions to three decimals."""
    return stated in (f'{count:,}', f'{count / 1e6:.3f}M')


def plan_rows(table: Table, rows: Sequence[Row], scale: Scale, rate: float | None) -> list[Planned]:
    """Plan rows, given the device's operations per second if known; build models and data, read nothing."""
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
    """Return this device's operations per second in finished pre-training runs; None without any."""
    device = describe_machine()['hardware']['device']
    rates = [
        r['flops'] / r['images_seen'] * r['images_per_s']
        for r in records
        if r['hardware']['device'] == device and r.get('flops') and r.get('images_per_s')
    ]
    return statistics.median(rates) if rates else None


def show(planned: Sequence[Planned], rate: float | None, seeds: int) -> list[str]:
    """Format the plan: a table of the rows that run, without empty columns, and why the others do not."""
    device = describe_machine()['hardware']['device']
    running = [_cells(p, seeds) for p in planned if not p.reason]
    shown = [key for key in (running[0] if running else ()) if any(cells[key] != '-' for cells in running)]
    return [
        f'{rate / 1e9:,.0f} GFLOP/s in finished runs on {device}' if rate else f'No runs on {device} yet',
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
    """Return device hours of all rows and seeds with learning rate searches; shared stages count twice."""
    total = seeds * sum(p.hours or 0.0 for p in planned)
    if scale.search is not None:
        for plan in planned:
            trials = (plan.pretrain, scale.search.pretrain_steps), (plan.tune, scale.search.tune_steps)
            work = sum(c.flops * c.batch * min(steps, c.steps) for c, steps in trials if c is not None)
            total += len(scale.search.factors) * work / rate / 3600
    return total
