"""The published recipes (workshop text, appendix D; released scripts) as data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from explora_geo.adaptation import ExPLoRAConfig
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import TeacherConfig
from explora_geo.objectives.mae import SLOTS_DECODER_ADAPTATION
from explora_geo.trainers.optim import OptimConfig


@dataclass(frozen=True)
class Preset:
    """One published recipe.

    Attributes:
        adaptation: What trains in the backbone.
        optim: Optimiser and schedule.
        batch: Effective batch, reached with gradient accumulation.
        epochs: Length in epochs, or None where it is given in steps or not published here.
        steps: Length in optimiser steps, or None.
        objective: Arguments of the objective.
        drop_path_rate: Stochastic depth of the student.
        gradient_clip: Largest norm of the gradient, the trainer's `gradient_clip_val`, or None.
    """

    adaptation: ExPLoRAConfig
    optim: OptimConfig
    batch: int
    epochs: int | None = None
    steps: int | None = None
    objective: Mapping[str, Any] = field(default_factory=dict)
    drop_path_rate: float = 0.0
    gradient_clip: float | None = None


def _mae(
    adaptation: str, base_lr: float, epochs: int, alpha: float | None, decoder: ExPLoRAConfig | None = None
) -> Preset:
    decoder = decoder or ExPLoRAConfig(unfrozen_blocks=(), rank=8, alpha=alpha, extra=('mask_token',))
    return Preset(
        ExPLoRAConfig.parse(adaptation, alpha=alpha),
        OptimConfig(base_lr=base_lr, lr_scaling='linear', betas=(0.9, 0.95), warmup=1),
        batch=1024,
        epochs=epochs,
        objective={'mask_ratio': 0.75, 'norm_pix_loss': True, 'decoder_adaptation': decoder},
    )


def _dinov2(
    adaptation: str, base_lr: float, batch: int, steps: int | None, alpha: float | None, freeze: float
) -> Preset:
    # What the two sources do not state is DINOv2's default.
    return Preset(
        ExPLoRAConfig.parse(adaptation, alpha=alpha),
        OptimConfig(
            base_lr=base_lr,
            lr_scaling='sqrt',
            betas=(0.9, 0.999),
            warmup=10,
            min_lr=1e-6,
            layer_decay=0.9,
            patch_embed_lr_multiplier=0.2,
        ),
        batch=batch,
        steps=steps,
        objective={
            'head': HeadConfig(prototypes=65536, hidden_dim=2048, bottleneck_dim=256, num_layers=3),
            'teacher': TeacherConfig(
                momentum=0.992, temperature=0.04, final_temperature=0.07, temperature_warmup=30
            ),
            'freeze_last_layer': freeze,
            'head_warmup': 0,
        },
        drop_path_rate=0.3,
        gradient_clip=3.0,
    )


#: Recipes by name and by the weights they start from: `M` for MAE's, `D` for DINOv2's.
PRESETS: dict[str, dict[str, Preset]] = {
    'paper-workshop': {
        'M': _mae('M-ExPLoRA-[L]-r32', 1.5e-4, 200, None),
        'D': _dinov2('D-ExPLoRA-[L]-r32', 5e-3, 32, 200_000, None, freeze=1),
    },
    'paper-released': {
        # The released code scales LoRA by alpha / r with alpha = 1.
        'M': _mae('M-ExPLoRA-[L]-r64', 4.5e-4, 400, 1.0),
        'D': _dinov2('D-ExPLoRA-[L]-r64', 1e-3, 1024, None, 1.0, freeze=3),
    },
    # The workshop text's fMoW-Sentinel (tokenizer group-channel, 96 px, patch 8) and fMoW-Temporal; the
    # decoder's rank follows from the parameters that it counts.
    'paper-sentinel': {'M': _mae('M-ExPLoRA-[1,L]-r32', 4.5e-4, 50, None, SLOTS_DECODER_ADAPTATION)},
    'paper-temporal': {'M': _mae('M-ExPLoRA-[L]-r32', 4.5e-4, 50, None, SLOTS_DECODER_ADAPTATION)},
}


def get_preset(name: str, letter: str) -> Preset:
    """A recipe by name.

    Args:
        name: `paper-workshop`, `paper-released`, or of MAE alone `paper-sentinel`, `paper-temporal`.
        letter: `M` or `D`, the objective of the starting weights.

    Returns:
        The recipe.

    Raises:
        ValueError: If there is none.
    """
    if name not in PRESETS or letter not in PRESETS[name]:
        raise ValueError(
            f'no preset {name!r} for the objective {letter!r}: there are '
            + ', '.join(f'{known} ({" and ".join(letters)})' for known, letters in PRESETS.items())
            + '; M is MAE and D is DINOv2'
        )
    return PRESETS[name][letter]
