"""Device, precision and compiled kernels of a model."""

import functools
import timeit
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F


def pick_device(name: str = 'auto') -> torch.device:
    """Return a torch device by name.

    Args:
        name: `auto` for the first GPU, or the CPU without one; or any name torch knows.

    Raises:
        ValueError: If torch does not know the name, or there is no such device.
    """
    if name == 'auto':
        name = 'cuda' if torch.cuda.is_available() else 'cpu'
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f'device {name!r} is not available: use cpu, cuda or auto') from error
    return device


@functools.cache
def faster_precision() -> Literal['bf16-mixed', '32-true']:
    """Return Lightning's name of the faster precision here, measured once per process.

    A GPU uses bfloat16 if its hardware supports it. On a CPU a matrix product of a small ViT's MLP is timed
    in both types, because CPUs without AVX-512 or AMX are ten times slower in bfloat16.
    """
    if torch.cuda.is_available():
        return 'bf16-mixed' if torch.cuda.is_bf16_supported(including_emulation=False) else '32-true'
    if torch.backends.mps.is_available():
        return '32-true'
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        product = partial(F.linear, torch.ones(4096, 192, dtype=dtype), torch.ones(768, 192, dtype=dtype))
        seconds[dtype] = min(timeit.repeat(product, number=3, repeat=5))
    # Conversions and operations that stay in float32 use up part of the gain.
    return 'bf16-mixed' if 1.3 * seconds[torch.bfloat16] < seconds[torch.float32] else '32-true'


def compile_blocks(module: nn.Module) -> None:
    """Compile all transformer blocks of a model in place with `torch.compile`.

    Identical blocks share kernels, so compiling 24 blocks takes as long as one. Tensor names do not change.
    Run the model within `_compat.many_graphs`, as tasks do.

    Args:
        module: A backbone or an objective, including its teacher and decoder.
    """
    from timm.models.eva import EvaBlock
    from timm.models.vision_transformer import Block

    for block in module.modules():
        if isinstance(block, Block | EvaBlock):
            block.compile()
