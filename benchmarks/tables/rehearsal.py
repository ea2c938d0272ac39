"""Rehearses rows before they cost anything: two steps, a tiny backbone, tiny files, the code of the run."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from explora_geo.models import create_vit
from explora_geo.models.weights import all_weights
from explora_geo.objectives import MAE
from explora_geo.trainers import OptimConfig

from ..fitting import quiet
from .jobs import Job, fit_rank
from .recipe import Recipe, plain_value
from .runner import run_job
from .samples import sample_of
from .scales import Scale, Source, Tune
from .stages import Store

_SIZE = re.compile('_(?:small|base|large|giant)_')
_HEAD = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8}
#: Arguments of DINOv2 that only say when or how fast something happens.
_TIMES = ('teacher', 'phases', 'freeze_last_layer', 'head_warmup')
_RATE = {'base_lr': 1e-3, 'lr_scaling': 'none', 'warmup_fraction': 0.1}
_BATCH, _STEPS = 4, 2


def rehearse(jobs: Sequence[Job]) -> dict[str, str]:
    """Run rows as they are but for their size: dataset, transfer, model, objective, head and probe.

    Rows that differ only in what no shape depends on, as blocks and rank, are rehearsed once.

    Args:
        jobs: Rows at a scale.

    Returns:
        What went wrong, by the rows' ids; empty if nothing did.
    """
    failed: dict[str, str] = {}
    known: dict[str, str] = {}
    for job in jobs:
        with tempfile.TemporaryDirectory() as folder:
            key = _shape(job)
            if key not in known:
                try:
                    with quiet():
                        run_job(_tiny(job, Path(folder)), Store(Path(folder) / 'stages'))
                    known[key] = ''
                except Exception as error:  # whatever it is, the row would end with it
                    known[key] = f'{type(error).__name__}: {error}'.partition('\n')[0]
        if known[key]:
            failed[job.row.id] = known[key]
    return failed


def _shape(job: Job) -> str:
    """Everything that shapes depend on."""
    recipe = None if job.recipe is None else _short(job.recipe, job.scale).to_dict()
    if recipe is not None:
        recipe['adaptation'] = [recipe['adaptation'][k] for k in ('targets', 'extra')]
    data = [(d.class_path, plain_value(d.init_args), d.task, plain_value(d.task_args)) for d in _data(job)]
    tune = plain_value(job.tune.regularisation) if job.row.tuning in job.scale.tune else None
    content = [data, plain_value(job.source), job.backbone_options, recipe, job.row.tuning, tune]
    return json.dumps([*content, job.row.last_blocks], sort_keys=True, default=str)


def _data(job: Job) -> list[Any]:
    return [job.data, *([] if job.recipe is None else [job.pretrain_data])]


def _tiny(job: Job, folder: Path) -> Job:
    """The same row on a tiny backbone with random weights, tiny files and two steps."""
    data = {job.dataset: sample_of(job.scale.data[job.dataset], folder / 'tuned')}
    name = job.table.pretrain_dataset or job.dataset
    if job.recipe is not None and name != job.dataset:
        data[name] = sample_of(job.scale.data[name], folder / 'pretrained')
    scale = job.scale
    probe = replace(
        scale.probe, epochs=1, iterations=2, label_seeds=1, labelled=None, validated=None, tested=None
    )
    tune = {
        k: Tune(_BATCH, _STEPS, optim=_RATE, regularisation=t.regularisation) for k, t in scale.tune.items()
    }
    small = replace(
        scale,
        data=data,
        probe=probe,
        tune=tune,
        search=None,
        curve=0,
        every=_STEPS,
        trainer={'accelerator': 'cpu'},
    )
    recipe = None if job.recipe is None else _short(job.recipe, scale)
    return replace(
        job,
        row=replace(job.row, tune={}),
        scale=small,
        source=_tiny_source(job, folder / 'base.pth'),
        recipe=recipe,
    )


def _short(recipe: Recipe, scale: Scale) -> Recipe:
    arguments = dict(recipe.arguments)
    if recipe.objective == 'DINOv2':
        arguments = {k: v for k, v in arguments.items() if k not in _TIMES} | {'head': _HEAD}
    adaptation = fit_rank(recipe.adaptation, replace(scale, max_rank=8))
    optim = OptimConfig(**_RATE)  # type: ignore[arg-type]
    return replace(
        recipe, adaptation=adaptation, arguments=arguments, optim=optim, steps=_STEPS, batch_size=_BATCH
    )


def _tiny_source(job: Job, file: Path) -> Source:
    """A tiny backbone of the same geometry; its weights have that of the weights it stands for."""
    source = job.source
    model = _SIZE.sub('_tiny_', source.model)
    if not source.weights:
        return replace(source, model=model)
    entry = all_weights().get(source.weights)
    if entry is None:
        options: dict[str, Any] = {**job.backbone_options, 'tokenizer': 'patch', 'bands': None}
        vit, decoder = create_vit(model, **options), True
    else:
        meta = entry.meta
        options = {k: meta[k] for k in ('tokenizer', 'tokenizer_options', 'bands') if k in meta}
        vit, decoder = create_vit(_SIZE.sub('_tiny_', meta['model']), **options), meta['decoder']
    parts = MAE(vit).extra_state() if decoder else {}
    torch.save({'model': {**vit.state_dict(), **parts}}, file)
    return replace(source, model=model, weights=str(file))
