"""Where a model runs, in which precision, and by which kernels."""

import functools
import timeit
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F


def pick_device(name: str = 'auto') -> torch.device:
    """A torch device by name.

    Args:
        name: `auto` for the first GPU, else the CPU; or any name torch knows.

    Raises:
        ValueError: If torch does not know the name, or there is no such device.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'no device {name!r} here: give cpu, cuda or auto') from error
    return device


@functools.cache
def faster_precision() -> Literal['bf16-mixed', '32-true']:
    """Lightning's name of the faster precision on this machine: one choice, measured once per process.

    A GPU computes in bfloat16 if it has it in hardware. On a CPU a product of a small ViT's MLP is timed in
    both types, as processors without AVX-512 or AMX are ten times slower in bfloat16.
    """
    if torch.cuda.is_available():
        return 'bf16-mixed' if torch.cuda.is_bf16_supported(including_emulation=False) else '32-true'
    if torch.backends.mps.is_available():
        return '32-true'
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        product = partial(F.linear, torch.ones(4096, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype))
        seconds[dtype] = min(timeit.repeat(product, number=3, repeat=5))
    # Conversions and what stays in float32 cost a share of what products gain.
    return 'bf16-mixed' if 1.3 * seconds[torch.bfloat16] < seconds[torch.float32] else '32-true'


def compile_blocks(module: nn.Module) -> None:
    """Have `torch.compile` write the kernels of all transformer blocks of a model, in place.

    Blocks that are alike share them, so that compiling takes as long for 24 blocks as for one. Names of
    tensors stay as they are. The model runs within `_compat.many_graphs`, as tasks do.

    Args:
        module: A backbone or an objective; a teacher and a decoder are parts of it.
    """
    from timm.models.eva import EvaBlock
    from timm.models.vision_transformer import Block

    for block in module.modules():
        if isinstance(block, Block | EvaBlock):
            block.compile()
