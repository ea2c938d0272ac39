"""Which of torch's kernels is faster where a task runs."""

from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from timm.models.vision_transformer import Block
from torch import nn

from explora_geo.adaptation import hold_frozen
from explora_geo.devices import faster_precision as faster_precision

#: Graphs of a block: with LoRA, in full, crops of two sizes, a teacher, every rate of stochastic depth.
_GRAPHS = 128


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


def many_graphs() -> AbstractContextManager[None]:
    """Let compiled blocks have as many graphs as they need, where torch would give up after a few."""
    config: Any = torch._dynamo.config
    changed: AbstractContextManager[None] = config.patch(recompile_limit=max(config.recompile_limit, _GRAPHS))
    return changed


def compile_blocks(module: nn.Module) -> None:
    """Have `torch.compile` write the kernels of all transformer blocks of a model, in place.

    Blocks that are alike share them, so that compiling takes as long for 24 blocks as for one. Names of
    tensors stay as they are. The model runs within `many_graphs`, as tasks do.

    Args:
        module: A backbone or an objective; a teacher and a decoder are parts of it.
    """
    for block in module.modules():
        if isinstance(block, Block):
            block.compile()


def hold_frozen_in_bfloat16(module: nn.Module, precision: str) -> None:
    """Let go of float32 numbers that the trainer's precision never computes with.

    Args:
        module: An objective.
        precision: The trainer's.

    Raises:
        ValueError: If that precision computes with them.
    """
    if not precision.startswith('bf16'):
        raise ValueError(
            f'frozen_dtype bfloat16 would round the weights of a run in precision {precision}: set '
            'precision to bf16-mixed, or leave frozen_dtype at float32'
        )
    hold_frozen(module, torch.bfloat16)
