"""Small weights files: matrices as int8 with one scale per row, all else in float16."""

from collections.abc import Mapping

import torch
from torch import Tensor

#: The header entry of such a file, and the only value that is known.
QUANTIZATION = {'quantization': 'int8-rows'}
_SCALE = '.scale'
# Smaller tensors and position codes are kept in float16: they cost little and round badly.
_SMALLEST = 20_000
_KEPT = ('pos_embed', 'cls_token')


def quantize_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Store floating-point matrices as int8: each row times 127 over its largest magnitude.

    Returns:
        int8 tensors of the same shapes with `<name>.scale`, shape (rows,) in float16, beside them; what is
        small or a position code in float16.
    """
    packed = {}
    for name, tensor in state.items():
        if tensor.ndim < 2 or tensor.numel() <= _SMALLEST or name.endswith(_KEPT):
            packed[name] = tensor.half()
            continue
        rows = tensor.float().flatten(1)
        # The scale as it is stored, never zero: rows of zeros stay zeros.
        scale = (rows.abs().amax(1) / 127).half().clamp(min=torch.finfo(torch.float16).tiny)
        packed[name] = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8).view_as(tensor)
        packed[name + _SCALE] = scale
    return packed


def dequantize_rows(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Undo `quantize_rows`, in float32; `source` is the file to name in the message.

    Raises:
        ValueError: If an int8 tensor lacks its scale, or a scale its tensor.
    """
    scales = {name: tensor for name, tensor in state.items() if name.endswith(_SCALE)}
    weights = {}
    for name, tensor in state.items():
        if name.endswith(_SCALE):
            continue
        if tensor.dtype != torch.int8:
            weights[name] = tensor.float()
            continue
        scale = scales.pop(name + _SCALE, None)
        if scale is None or tensor.ndim < 2 or scale.shape != tensor.shape[:1]:
            raise ValueError(f'{source} is damaged: {name} is int8 without a scale for each of its rows')
        weights[name] = (tensor.flatten(1).float() * scale.float()[:, None]).view_as(tensor)
    if scales:
        raise ValueError(f'{source} is damaged: {next(iter(scales))} belongs to no int8 tensor')
    return weights
