"""Parameter groups and the warm-up cosine schedule, defined once."""

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Literal

from lightly.utils.scheduler import cosine_warmup_schedule
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, LRScheduler


@dataclass(frozen=True)
class OptimConfig:
    """Optimiser and schedule; the defaults are those of the workshop text for M-ExPLoRA.

    Attributes:
        base_lr: Learning rate before scaling by the batch.
        lr_scaling: `linear` times batch / 256 (MAE), `sqrt` times sqrt(batch / 1024) (DINOv2), `none`.
        adapter_lr_multiplier: Factor on the learning rate of LoRA matrices.
        weight_decay: Decay of unfrozen matrices; LoRA, norms, biases and tokens never decay.
        betas: AdamW's.
        warmup: Warm-up as a share of all steps if below 1, else in epochs.
        min_lr: Learning rate at the end of the cosine; it is not scaled by the batch.
        layer_decay: Factor on the learning rate from each block of the backbone to the one before it; the
            input side is one more block down, the final norm and heads keep the full rate (DINOv2).
        patch_embed_lr_multiplier: Further factor for the patch embedding.
    """

    base_lr: float = 1.5e-4
    lr_scaling: Literal['linear', 'sqrt', 'none'] = 'linear'
    adapter_lr_multiplier: float = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: float = 1
    min_lr: float = 0.0
    layer_decay: float = 1.0
    patch_embed_lr_multiplier: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('base_lr', 'adapter_lr_multiplier', 'layer_decay', 'patch_embed_lr_multiplier'):
            if getattr(self, name) <= 0:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        for name in ('weight_decay', 'warmup', 'min_lr'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')
        if self.lr_scaling not in ('linear', 'sqrt', 'none'):
            raise ValueError(f'lr_scaling must be linear, sqrt or none, got {self.lr_scaling!r}')

    def scaled_lr(self, batch: int) -> float:
        """Learning rate at an effective batch (batch size x accumulation x devices)."""
        factor = {'linear': batch / 256, 'sqrt': (batch / 1024) ** 0.5, 'none': 1.0}
        return self.base_lr * factor[self.lr_scaling]

    def warmup_steps(self, total: int, epochs: int) -> int:
        """Warm-up in optimiser steps, of a run of `total` steps in `epochs` epochs."""
        if self.warmup < 1:
            return int(self.warmup * total)
        return min(int(self.warmup * total / max(epochs, 1)), total // 2)


def build_optimizer(
    model: nn.Module, config: OptimConfig, batch: int, precision: object = '32-true'
) -> AdamW:
    """AdamW over exactly the parameters that train, in one pass over them.

    Args:
        model: What trains.
        config: Rates and groups.
        batch: Images per optimiser step.
        precision: The trainer's.

    Returns:
        The optimiser.

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
    lr = config.scaled_lr(batch)
    settings = {
        'decay': {'lr': lr, 'weight_decay': config.weight_decay},
        'no_decay': {'lr': lr, 'weight_decay': 0.0},
        'lora': {'lr': lr * config.adapter_lr_multiplier, 'weight_decay': 0.0},
    }
    if not groups:
        raise ValueError('nothing trains: the adaptation leaves every parameter frozen')
    used = [
        {
            'params': parameters,
            'name': kind if factor == 1 else f'{kind}, lr x{factor:.4g}',
            'lr': settings[kind]['lr'] * factor,
            'weight_decay': settings[kind]['weight_decay'],
        }
        for (factor, kind), parameters in sorted(groups.items(), reverse=True, key=lambda row: row[0][0])
    ]
    scaled = precision == '16-mixed'
    optimizer = AdamW(used, lr=lr, betas=config.betas, fused=not scaled)
    # Lightning clips no gradients that a fused optimiser would still have to unscale; only 16-mixed scales.
    optimizer._step_supports_amp_scaling = False
    return optimizer


# Of a backbone alone or within an objective, but not of its decoder.
_BLOCK = re.compile(r'(?:backbone\.)?blocks\.(?P<block>\d+)\.')
_INPUT = re.compile(r'(?:backbone\.)?(?:patch_embed\.|pos_embed$|cls_token$|mask_token$|channel_embed)')


def _lr_factor(name: str, depth: int, config: OptimConfig) -> float:
    """Factor on the learning rate of a parameter by its place in the backbone."""
    block = _BLOCK.match(name)
    below = depth - int(block['block']) if block else depth + 1 if _INPUT.match(name) else 0
    embedding = re.match(r'(?:backbone\.)?patch_embed\.', name)
    return config.layer_decay**below * (config.patch_embed_lr_multiplier if embedding else 1.0)


def build_schedule(optimizer: AdamW, config: OptimConfig, total: int, epochs: int, batch: int) -> LRScheduler:
    """Linear warm-up and cosine decay, by optimiser step.

    Its state is the step alone, so that a checkpoint can be resumed for longer than it was meant to run.
    """

    def factor(step: int) -> float:
        rate = cosine_warmup_schedule(
            step,
            max_steps=max(total, 2),  # a single step would be the last of the cosine, at the lowest rate
            start_value=1.0,
            end_value=config.min_lr / config.scaled_lr(batch),
            warmup_steps=config.warmup_steps(total, epochs),
            warmup_start_value=0.0,
        )
        return float(rate)  # a NumPy number in a checkpoint could not be read with weights_only

    return LambdaLR(optimizer, factor)
