"""Which of torch's kernels is faster where a task runs, and how fast its steps are."""

import time
from contextlib import AbstractContextManager

import torch
from lightning.pytorch import LightningModule
from timm.models.vision_transformer import Block
from torch import nn

from explora_geo._compat import compile_limit, unfuse_attention
from explora_geo.adaptation import hold_frozen

#: Graphs of a block: with LoRA, in full, crops of two sizes, a teacher, every rate of stochastic depth.
_GRAPHS = 128


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
    return compile_limit(_GRAPHS)


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


class StepClock:
    """Times steps, and the share of them in which the loop waited for its loader.

    Attributes:
        waited: Seconds that it has waited in all.
    """

    def __init__(self) -> None:
        """Initialize a StepClock that stands still."""
        self._last: float | None = None
        self._waiting: float | None = None
        self.waited = self._counted = 0.0

    def pause(self) -> None:
        """Leave out the time until the next step."""
        self._last = self._waiting = None

    def wait(self) -> None:
        """The loop asks for a batch from now on."""
        self._waiting = time.perf_counter()

    def go_on(self) -> None:
        """The batch is there."""
        if self._waiting is not None:
            self.waited += time.perf_counter() - self._waiting
        self._waiting = None

    def lap(self, images: int) -> dict[str, float]:
        """Note the end of a step.

        Args:
            images: Images of the step, of all processes.

        Returns:
            `images_per_s` and the share `data_wait`, or nothing of a first step.
        """
        now = time.perf_counter()
        last, self._last = self._last, now
        waited, self._counted = self.waited - self._counted, self.waited
        return (
            {}
            if last is None
            else {'images_per_s': images / (now - last), 'data_wait': waited / (now - last)}
        )
