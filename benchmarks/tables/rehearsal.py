"""Rehearses rows before they cost anything: two steps, a tiny backbone, tiny files, the code of the run."""

import json
import re
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from explora_geo.models import create_vit
from explora_geo.models.tokenizers import RGB
from explora_geo.models.weights import all_weights
from explora_geo.objectives import MAE
from explora_geo.trainers import OptimConfig

from .jobs import Job, fit_rank
from .recipe import Recipe, plain_value
from .runner import run_job
from .scales import Data, Scale, Source, Tune
from .stages import Store
from .training import quiet

_SIZE = re.compile('_(?:small|base|large|giant)_')
_HEAD = {'prototypes': 32, 'hidden_dim': 16, 'bottleneck_dim': 8}
#: Arguments of DINOv2 that only say when or how fast something happens.
_TIMES = ('teacher', 'phases', 'freeze_last_layer', 'head_warmup')
_RATE = {'base_lr': 1e-3, 'lr_scaling': 'none', 'warmup_fraction': 0.1}
_BATCH, _STEPS = 4, 2


def rehearse(jobs: Sequence[Job]) -> dict[str, str]:
    """Run rows as they are but for their size and files: transfer, model, objective, head and probe.

    Random images of the row's size and bands stand in for its data. Rows that differ only in what no shape
    depends on, as blocks and rank, are rehearsed once. Returns what went wrong, by the rows' ids.
    """
    failed: dict[str, str] = {}
    known: dict[str, str] = {}
    for job in jobs:
        key = _shape(job)
        if key not in known:
            with tempfile.TemporaryDirectory() as folder, quiet():
                try:
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
    used = [job.data, *([] if job.recipe is None else [job.pretrain_data])]
    data = [(d.class_path, plain_value(d.init_args), d.task, plain_value(d.task_args)) for d in used]
    tune = plain_value(job.tune.regularisation) if job.row.tuning in job.scale.tune else None
    content = [data, plain_value(job.source), job.backbone_options, recipe, job.row.tuning, tune]
    return json.dumps([*content, job.row.last_blocks], sort_keys=True, default=str)


def _tiny(job: Job, folder: Path) -> Job:
    """The same row on a tiny backbone with random weights, tiny files and two steps."""
    scale = job.scale
    names = {job.dataset, job.table.pretrain_dataset or job.dataset}
    data = {n: _stand_in(job, scale.data[n], folder / n) for n in names if n in scale.data}
    whole: dict[str, Any] = dict.fromkeys(('labelled', 'validated', 'tested'))
    small = replace(
        scale,
        data=data,
        probe=replace(scale.probe, epochs=1, iterations=2, label_seeds=1, **whole),
        tune={k: Tune(_BATCH, _STEPS, None, _RATE, t.regularisation) for k, t in scale.tune.items()},
        search=None,
        curve=0,
        every=_STEPS,
        trainer={'accelerator': 'cpu'},
    )
    recipe = None if job.recipe is None else _short(job.recipe, scale)
    source = _tiny_source(job, folder / 'base.pth')
    return replace(job, row=replace(job.row, tune={}), scale=small, source=source, recipe=recipe)


def _stand_in(job: Job, data: Data, root: Path) -> Data:
    """Random images of a row's size and bands, in class folders, beside masks, or with dates."""
    bands: Sequence[str] = job.backbone_options['bands'] or RGB
    size, random = data.init_args.get('image_size', 224), np.random.default_rng(0)
    arguments: dict[str, Any] = {'image_size': size, 'num_workers': 0}
    if job.backbone_options['tokenizer'] == 'temporal':
        for split in ('train', 'val'):
            rows = ['category,location,timestamp']
            for i in range(18):  # three images of each of six places
                name = f'{split}/airport_{i // 3}_{i}_rgb.tif'
                _write(root / name, random.integers(1, 255, (3, 64, 64)))
                rows.append(f'{i // 3 % 3},{name},20{10 + i}-01-15T10:20:30Z')
            (root / f'{split}_62classes.csv').write_text('\n'.join(rows) + '\n')
        return replace(data, init_args={**data.init_args, **arguments, 'root': str(root)})
    masks = data.task.endswith('SegmentationTask')
    for i in range(18):
        name = f'images/{i}.tif' if masks else f'{i % 3}/{i}.tif'
        _write(root / name, random.integers(1, 255, (len(bands), 64, 64)))
        if masks:
            _write(root / 'masks' / f'{i}.tif', random.integers(0, data.classes or 2, (1, 64, 64)))
    arguments |= {'root': str(root), 'test_root': str(root), 'val_split': 0.3}
    if not masks:
        arguments |= {'bands': list(bands), 'file_bands': list(bands)}
    kind = 'MaskFolderDataModule' if masks else 'FolderDataModule'
    return replace(data, class_path=f'explora_geo.datamodules.{kind}', init_args=arguments, pretrain_args={})


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width = pixels.shape
    profile: dict[str, Any] = {'count': count, 'height': height, 'width': width, 'dtype': 'uint8'}
    with rasterio.open(path, 'w', driver='GTiff', **profile) as target:
        target.write(pixels.astype(np.uint8))


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
