"""Run length, parameter groups, and schedules of learning rate and weight decay."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from lightly.utils.scheduler import cosine_warmup_schedule
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from explora_geo._compat import unscaled_by_clipping
from explora_geo.objectives.schedules import Length, TrainingLength, rename_length

# Match a backbone, alone or within an objective, but not the decoder.
_BLOCK = re.compile(r'(?:backbone\.)?blocks\.(?P<block>\d+)\.')
_INPUT = re.compile(r'(?:backbone\.)?(?:(patch_embed\.)|pos_embed$|(?:cls|reg|mask)_token$|channel_embed)')


def training_length(trainer: Trainer) -> TrainingLength:
    """Return the length of the run that a trainer is about to start.

    Raises:
        ValueError: If the run has no known length.
    """
    steps, accumulated = trainer.estimated_stepping_batches, trainer.accumulate_grad_batches
    if not 0 <= steps < math.inf:
        raise ValueError(
            'warm-up and cosine need the length of the run: set trainer.max_steps, or trainer.max_epochs for '
            'data of known length'
        )
    if trainer.train_dataloader is None:
        # Lightning sets up the loader later if only `max_steps` ends the run.
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    sources = (trainer.train_dataloader, getattr(trainer, 'datamodule', None))
    # Loaders with a batch sampler (TorchGeo's geo samplers) have no batch size of their own.
    size = next((n for n in (getattr(s, 'batch_size', None) for s in sources) if n), 1)
    epoch = math.inf if batches == math.inf else math.ceil(batches / accumulated)
    return TrainingLength(int(steps), epoch, size * accumulated * trainer.world_size)


@dataclass(frozen=True)
class OptimConfig:
    """Optimizer and schedule; the defaults follow the workshop text for M-ExPLoRA.

    Attributes:
        base_lr: Learning rate before scaling by the batch size.
        lr_scaling: Factor: `linear` is batch / 256 (MAE), `sqrt` is sqrt(batch / 1024) (DINOv2), `none` is 1.
        adapter_lr_multiplier: Learning-rate factor for LoRA matrices.
        weight_decay: Weight decay of unfrozen matrices; LoRA, norms, biases and tokens never decay.
        final_weight_decay: Weight decay at the end of a cosine schedule (DINOv2 from scratch: 0.04 to 0.4);
            constant if None.
        betas: AdamW's beta coefficients.
        warmup_steps: Linear warm-up, in optimizer steps.
        warmup_epochs: Linear warm-up, in epochs; 1 if no warm-up is given.
        warmup_fraction: Linear warm-up, as a fraction of the run.
        min_lr: Learning rate at the end of the cosine; not scaled by the batch size.
        layer_decay: Learning-rate factor from each backbone block to the one before it; the input side counts
            as one more block down, the final norm and heads keep the full rate (DINOv2).
        patch_embed_lr_multiplier: Additional learning-rate factor for the patch embedding.
        warmup: Deprecated: a fraction of the run if below 1, otherwise epochs.
    """

    base_lr: float = 1.5e-4
    lr_scaling: Literal['linear', 'sqrt', 'none'] = 'linear'
    adapter_lr_multiplier: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    min_lr: float = 0.0
    layer_decay: float = 1.0
    patch_embed_lr_multiplier: float = 1.0
    warmup_steps: int | None = None
    warmup_epochs: float | None = None
    warmup_fraction: float | None = None
    final_weight_decay: float | None = None
    warmup: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('base_lr', 'adapter_lr_multiplier', 'layer_decay', 'patch_embed_lr_multiplier'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        for name in ('weight_decay', 'min_lr', 'final_weight_decay', 'warmup'):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')
        if self.warmup is not None:
            for name, value in rename_length('warmup', self.warmup).items():
                object.__setattr__(self, name, getattr(self, name) if value is None else value)
            object.__setattr__(self, 'warmup', None)
        _ = self.warmup_length
        if self.lr_scaling not in ('linear', 'sqrt', 'none'):
            raise ValueError(f'lr_scaling must be linear, sqrt or none, got {self.lr_scaling!r}')

    def scaled_lr(self, batch: int) -> float:
        """Return the learning rate for an effective batch size (batch size x accumulation x devices)."""
        factor = {'linear': batch / 256, 'sqrt': (batch / 1024) ** 0.5, 'none': 1.0}
        return self.base_lr * factor[self.lr_scaling]

    @property
    def warmup_length(self) -> Length:
        """Length of the learning-rate warm-up."""
        return Length.of(self, 'warmup', Length('warmup_epochs', 1))


def optimization(
    trainer: Trainer, model: nn.Module, config: OptimConfig, length: TrainingLength
) -> dict[str, Any]:
    """Return the optimizer and its per-step schedule in the form that `configure_optimizers` requires."""
    optimizer = build_optimizer(model, config, length.batch, trainer.precision)
    schedule = build_schedule(optimizer, config, length)
    return {'optimizer': optimizer, 'lr_scheduler': {'scheduler': schedule, 'interval': 'step'}}


def build_optimizer(
    model: nn.Module, config: OptimConfig, batch: int, precision: object = '32-true'
) -> AdamW:
    """Build AdamW, fused except in 16-mixed, over exactly the trainable parameters for a given batch size.

    Raises:
        ValueError: If nothing trains.
    """
    depth = len({found['block'] for name, _ in model.named_parameters() if (found := _BLOCK.match(name))})
    groups: dict[tuple[float, str], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lora = '.lora_a.' in name or '.lora_b.' in name
            plain = parameter.ndim < 2 or name.endswith(('_token', 'pos_embed'))
            kind = 'lora' if lora else 'no_decay' if plain else 'decay'
            groups[_lr_factor(name, depth, config), kind].append(parameter)
    if not groups:
        raise ValueError('nothing to train: the adaptation freezes every parameter')
    lr = config.scaled_lr(batch)
    used = [
        {
            'params': parameters,
            'name': kind if factor == 1 else f'{kind}, lr x{factor:.4g}',
            'lr': lr * (config.adapter_lr_multiplier if kind == 'lora' else 1) * factor,
            'weight_decay': config.weight_decay if kind == 'decay' else 0.0,
        }
        for (factor, kind), parameters in sorted(groups.items(), reverse=True, key=lambda row: row[0][0])
    ]
    optimizer = AdamW(used, lr=lr, betas=config.betas, fused=precision != '16-mixed')
    unscaled_by_clipping(optimizer)  # only 16-mixed scales gradients
    return optimizer


def _lr_factor(name: str, depth: int, config: OptimConfig) -> float:
    """Return the learning-rate factor of a parameter from its place in the backbone."""
    block, start = _BLOCK.match(name), _INPUT.match(name)
    below = depth - int(block['block']) if block else depth + 1 if start else 0
    return config.layer_decay**below * (config.patch_embed_lr_multiplier if start and start[1] else 1.0)


class _Schedule(LambdaLR):
    """Per-step learning rates, given as a factor, and weight decay of decaying groups, given as a value.

    Its state is only the step, so that a checkpoint can be resumed for a longer run than planned.
    """

    def __init__(self, optimizer: AdamW, factor: Any, decay: Any) -> None:
        self._decay = decay
        super().__init__(optimizer, factor)

    def step(self, epoch: int | None = None) -> None:
        super().step(epoch)
        for group in self.optimizer.param_groups:
            if self._decay is not None and group.get('name', '').startswith('decay'):
                group['weight_decay'] = self._decay(self.last_epoch)

    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in super().state_dict().items() if k != '_decay'}


def build_schedule(optimizer: AdamW, config: OptimConfig, length: TrainingLength) -> LRScheduler:
    """Build linear warm-up and cosine decay of the learning rate, and a cosine of weight decay, per step.

    Args:
        optimizer: Result of `build_optimizer`.
        config: Rates and lengths.
        length: Length of the run.
    """
    total, warmup, final = length.total, length.steps(config.warmup_length), config.final_weight_decay
    length.check(config.warmup_length, 'the learning rate rises until the end')

    def factor(step: int) -> float:
        if step < warmup or warmup >= total:
            return min(1.0, (step + 1) / warmup)
        rate = cosine_warmup_schedule(
            step,
            max_steps=max(total, 2),  # a single step would run at the cosine's lowest rate
            start_value=1.0,
            end_value=config.min_lr / config.scaled_lr(length.batch),
            warmup_steps=warmup,
            warmup_start_value=0.0,
        )
        return float(rate)  # weights_only cannot read NumPy numbers from a checkpoint

    decay = None if final is None else partial(length.cosine, start=config.weight_decay, end=final)
    return _Schedule(optimizer, factor, decay)
