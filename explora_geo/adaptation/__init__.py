"""Adaptation of pre-trained transformers by ExPLoRA (paper, section 4)."""

from explora_geo.adaptation.explora import (
    ExPLoRAConfig,
    explora,
    frozen_blocks,
    trainable_names,
    trainable_summary,
)
from explora_geo.adaptation.frozen import hold_frozen
from explora_geo.adaptation.lora import LoRALinear, merge_lora

__all__ = [
    'ExPLoRAConfig',
    'LoRALinear',
    'explora',
    'frozen_blocks',
    'hold_frozen',
    'merge_lora',
    'trainable_names',
    'trainable_summary',
]
