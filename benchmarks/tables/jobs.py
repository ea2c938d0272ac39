"""Settings of a row at a scale: source, recipe, data and tuning, fixed before anything runs."""

from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from typing import Any

import torch

from explora_geo.models.weights import all_weights
from explora_geo.trainers.presets import get_preset

from .recipe import Recipe, read_recipe
from .rows import Row, Table
from .scales import Data, Scale, Source, Tune

_OBJECTIVES = {'M': 'MAE', 'D': 'DINOv2'}


@dataclass(frozen=True)
class Job:
    """A row at a scale."""

    table: Table
    row: Row
    scale: Scale
    source: Source  # starting weights; random if its `weights` are empty
    recipe: Recipe | None  # pre-training, or None for the unchanged source
    seed: int = 0  # seed of the run

    @property
    def dataset(self) -> str:
        """Name of the data set used for tuning."""
        return self.row.dataset or self.table.dataset

    @cached_property
    def data(self) -> Data:
        """Data for tuning."""
        data = self.scale.data[self.dataset]
        return replace(data, task_args={**data.task_args, 'head': self.row.head}) if self.row.head else data

    @cached_property
    def pretrain_data(self) -> Data:
        """Data for pre-training."""
        data = self.scale.data[self.table.pretrain_dataset or self.dataset]
        extra = data.pretrain_args if self.table.unlabeled else {}
        return replace(data, init_args={**data.init_args, **extra})

    @cached_property
    def tune(self) -> Tune:
        """Length and optimizer of tuning."""
        return replace(self.scale.tune[self.row.tuning], **self.row.tune)

    @property
    def backbone_options(self) -> dict[str, Any]:
        """Arguments of `create_vit` set by source and table, and those that named weights specify."""
        entry = all_weights().get(self.source.weights)
        stated = {} if entry is None else entry.meta.get('tokenizer_options', {})
        return {
            'img_size': self.source.img_size,
            'bands': list(self.row.bands or self.table.bands) or None,
            'tokenizer': self.row.tokenizer or self.table.tokenizer,
            **({'tokenizer_options': stated} if stated else {}),
        }


def why_not(table: Table, row: Row, scale: Scale) -> str:
    """Return briefly why a row does not run at a scale; empty if it does."""
    if row.only:
        return f'published only: {row.only}'
    if row.objective not in scale.sources:
        return f'no source of {_OBJECTIVES[row.objective]} at the scale {scale.name}'
    if row.model and row.weights and not scale.published:
        return f'another backbone, which the scale {scale.name} does not have'
    tuned = row.dataset or table.dataset
    for name in (tuned, (table.pretrain_dataset or tuned) if row.adaptation else tuned):
        if name not in scale.data:
            return f'no {name} at the scale {scale.name}'
    if row.tuning not in ('probe', 'none', *scale.tune):
        return f'no tuning {row.tuning} at the scale {scale.name}'
    return ''


def build_job(table: Table, row: Row, scale: Scale, seed: int = 0) -> Job:
    """Build the job of a row."""
    reason = why_not(table, row, scale)
    if reason:
        raise ValueError(f'table {table.id}, row {row.id} does not run: {reason}')
    source = scale.sources[row.objective]
    if scale.published:
        source = replace(
            source,
            model=row.model or source.model,
            weights=row.weights or source.weights,
            img_size=None if row.model and not row.weights else source.img_size,
        )
        if row.released:
            return Job(table, row, scale, replace(source, weights=row.released), None, seed)
    if row.start == 'random':
        source = replace(source, weights='')
    recipe = None
    if row.adaptation:
        recipe = _published_recipe(table, row, scale) if scale.published else _recipe(row, scale)
    return Job(table, row, scale, source, recipe, seed)


def _recipe(row: Row, scale: Scale) -> Recipe:
    values = {**scale.pretrain[row.objective], 'adaptation': row.adaptation}
    recipe = read_recipe(values, f'scale {scale.name}, pretrain, {row.objective}')
    adaptation = row.config
    if scale.max_rank is not None and adaptation.rank > scale.max_rank:  # the limit of its narrower backbones
        adaptation = replace(adaptation, rank=scale.max_rank)
    recipe = replace(recipe, adaptation=adaptation)
    if not adaptation.rank and recipe.objective == 'DINOv2':  # MAE's decoder has its own LoRA
        # Without LoRA its rate has no effect: share stages with rows of other multipliers.
        return replace(recipe, optim=replace(recipe.optim, adapter_lr_multiplier=1.0))
    return recipe


def _published_recipe(table: Table, row: Row, scale: Scale) -> Recipe:
    preset = get_preset(row.preset, row.objective)
    if row.steps:
        preset = preset.over(row.steps)
    arguments = {k: vars(v) if is_dataclass(v) else v for k, v in preset.objective.items()}
    if 'decoder_adaptation' in arguments:
        arguments['decoder_adaptation'] = preset.objective['decoder_adaptation'].to_dict()
    steps = preset.steps
    if steps is None:
        data = scale.data[table.pretrain_dataset or row.dataset or table.dataset]
        if not preset.epochs or not data.images:
            missing = f'set steps in row {row.id}, or images of the data in the scale {scale.name}'
            raise ValueError(f'the length of {row.preset} is unknown: {missing}')
        steps = preset.epochs * data.images // preset.batch
    alpha, ratio = row.config.alpha or preset.adaptation.alpha, preset.adaptation.mlp_rank_ratio
    adaptation = replace(row.config, alpha=alpha, mlp_rank_ratio=ratio)
    rest = _OBJECTIVES[row.objective], arguments, preset.batch, preset.drop_path_rate
    return Recipe(adaptation, preset.optim, steps, *rest)


def world_size(scale: Scale) -> int:
    """Return the number of devices over all nodes of a scale."""
    devices = scale.trainer.get('devices', 1)
    if not isinstance(devices, int):
        known = len(devices) if isinstance(devices, list) else max(1, torch.cuda.device_count())
        devices = int(devices) if str(devices).isdigit() else known
    return devices * int(scale.trainer.get('num_nodes', 1))


def split_batch(scale: Scale, data: Data, batch: int) -> tuple[int, int, int]:
    """Return images per device (at most `batch_size`), accumulated batches, and images per step."""
    world = world_size(scale)
    per_device = max(1, min(data.init_args.get('batch_size', batch), batch // world))
    accumulate = max(1, batch // (per_device * world))
    return per_device, accumulate, per_device * accumulate * world


def trainer_content(scale: Scale) -> dict[str, Any]:
    """Return the trainer options that affect the outcome of a stage; empty if there are none."""
    options = {k: v for k, v in scale.trainer.items() if k not in ('accelerator', 'strategy')}
    return {'trainer': options} if options else {}
