"""Which of torch's kernels is faster where a task runs."""

from typing import Any

from lightning.pytorch import LightningModule


def choose_attention(task: LightningModule) -> None:
    """Do without the fused attention of torch where it is the slower one: in bfloat16 on the CPU.

    There its backward pass takes longer than all matrix products of a step.

    Args:
        task: Task that is attached to a trainer.
    """
    trainer = task.trainer
    if trainer.strategy.root_device.type == 'cpu' and str(trainer.precision).startswith('bf16'):
        for module in task.modules():
            if hasattr(module, 'fused_attn'):
                attention: Any = module
                attention.fused_attn = False
