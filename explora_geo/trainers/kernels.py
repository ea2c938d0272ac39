"""Which of torch's kernels is faster where a task runs."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import nn


def unfuse_attention(module: nn.Module) -> None:
    """Do without the fused attention of torch in all of timm's blocks."""
    for part in module.modules():
        if hasattr(part, 'fused_attn'):
            attention: Any = part
            attention.fused_attn = False


def choose_attention(task: LightningModule) -> None:
    """Do without the fused attention of torch where it is the slower one: in bfloat16 on the CPU.

    There its backward pass takes longer than all matrix products of a step.

    Args:
        task: Task that is attached to a trainer.
    """
    trainer = task.trainer
    if trainer.strategy.root_device.type == 'cpu' and str(trainer.precision).startswith('bf16'):
        unfuse_attention(task)
