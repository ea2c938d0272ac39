"""Tensor files: read without running code, written atomically."""

import argparse
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from explora_geo._atomic import atomic_path as atomic_path

#: Header entry of files with int8 matrices, one scale per row, and float16 for everything else.
QUANTIZATION = {'quantization': 'int8-rows'}
_SCALE = '.scale'
# Smaller tensors and position codes stay in float16: they are cheap and sensitive to rounding.
_SMALLEST = 20_000
_KEPT = ('pos_embed', 'cls_token')
# Keys under which trainers nest the state dict, in the order of lookup.
_NESTS = ('model', 'state_dict', 'teacher', 'module')
# Data types by their names in safetensors; float32 is the default.
_TYPES = {'F16': torch.float16, 'BF16': torch.bfloat16, 'F64': torch.float64, 'I8': torch.int8}
# Data types of weights; integers are quantized, and meaningless without their scales.
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_state(path: str | Path, values: bool = True) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict from a `.safetensors` file, or else from a `torch.save` file.

    Returns:
        Tensors by name, without the nesting of trainers and with quantized rows as float32, and the metadata.
        Without `values`, tensors have shape and type only (on the meta device).

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is damaged, would need to run code, or declares tensors larger than itself.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'weights file not found: {path}')
    if path.suffix == '.safetensors':
        try:
            path.open('rb').close()  # safetensors reports an unreadable file as missing
            with safe_open(path, 'pt') as file:
                read = file.get_tensor if values else lambda name: _outline(file, name)
                state, metadata = {k: read(k) for k in file.keys()}, file.metadata() or {}
        except Exception as error:  # safetensors' own errors, and torch's for unknown types
            raise ValueError(f'{path} is damaged or not a safetensors file ({first_line(error)})') from error
        if QUANTIZATION.items() <= metadata.items():
            state = dequantize_rows(state, str(path))
        return state, metadata
    state = unnest(read_checkpoint(path, mmap=not values), path)
    check_storage(state, path)
    return state if values else {k: v.to('meta') for k, v in state.items()}, {}


def _outline(file: Any, name: str) -> Tensor:
    part = file.get_slice(name)
    return torch.empty(part.get_shape(), dtype=_TYPES.get(part.get_dtype(), torch.float32), device='meta')


def read_checkpoint(path: str | Path, mmap: bool = False) -> Any:
    """Read a `torch.save` file without running code; with `mmap`, tensors stay on disk if possible.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is damaged or would need to run code.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'checkpoint not found: {path}')
    try:
        packed = zipfile.is_zipfile(path)
        if packed:  # `torch.save` never compresses
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > path.stat().st_size:
                raise ValueError(f'it would unpack to {size:,} bytes')
        # Trainers store their arguments beside the tensors: a plain container, safe to rebuild.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap and packed)
    except Exception as error:  # the unpickler raises almost anything on damaged bytes
        raise ValueError(
            f'{path} cannot be loaded safely: it is damaged or contains code ({first_line(error)})'
        ) from error


def check_values(state: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that tensors are floating-point weights, finite in float32; raise ValueError otherwise."""
    for name, tensor in state.items():
        if tensor.dtype not in _FLOATS:
            raise ValueError(
                f'{source} contains {name} as {str(tensor.dtype).removeprefix("torch.")}, but weights must '
                'be 16- to 64-bit floating point: convert the file back'
            )
        if not torch.isfinite(tensor.float()).all():
            raise ValueError(f'{source} contains non-finite values in {name}')


def differences(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """Describe tensors that are missing, unknown, or of the wrong shape; empty if the state dict matches."""
    missing, unknown = ([k for k in a if k not in b] for a, b in ((wanted, state), (state, wanted)))
    if missing or unknown:
        shown = [f'is missing {", ".join(missing[:3])}'] if missing else []
        shown += [f'contains unknown {", ".join(unknown[:3])}'] if unknown else []
        counts = f'{len(missing)} missing, {len(unknown)} unknown of {len(wanted)} tensors'
        return f'{" and ".join(shown)} ({counts})'
    wrong = next((k for k, v in state.items() if v.shape != wanted[k].shape), None)
    if wrong is None:
        return ''
    found, expected = (tuple(tensors[wrong].shape) for tensors in (state, wanted))
    return f'contains {wrong} of shape {found}, but the model expects {expected}'


def check_exact(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: str | Path) -> None:
    """Check that a file's tensors match the model in its header; raise ValueError otherwise.

    Tensors must be weights, but counters may be integers.
    """
    if wrong := differences(state, wanted):
        raise ValueError(f'{path} {wrong}: the file is incomplete or belongs to another model')
    check_values({k: v for k, v in state.items() if v.dtype != wanted[k].dtype or v.dtype in _FLOATS}, path)


def check_storage(state: Mapping[str, Tensor], path: str | Path) -> None:
    """Reject tensors that are sparse, quantized, on a device, or larger than their file."""
    size = Path(path).stat().st_size
    for name, tensor in state.items():
        kind = 'sparse' if tensor.layout != torch.strided else 'quantized' if tensor.is_quantized else ''
        kind = kind or tensor.device.type.removeprefix('cpu')
        if kind:
            raise ValueError(f'{path} contains {name} as a {kind} tensor: save it as a dense CPU tensor')
        if tensor.numel() * tensor.element_size() > size:
            raise ValueError(
                f'{path} contains {name} of shape {tuple(tensor.shape)}, which is larger than the file'
            )


def unnest(content: Any, path: str | Path) -> dict[str, Tensor]:
    """Extract the state dict from a trainer's checkpoint."""
    for key in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} contains a {type(content).__name__}, expected a state dict')
    state = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not state:
        raise ValueError(f'{path} contains no tensors')
    return state


def write_state(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and header entries as a safetensors file, atomically."""
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=dict(metadata))


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of names, shapes and float32 values of a state dict, whatever file it came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().float().contiguous()
        digest.update(f'{name}{tuple(tensor.shape)}'.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def quantize_rows(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Quantize floating-point matrices to int8: each row times 127 over its largest magnitude.

    Each comes with `<name>.scale`, shape (rows,) in float16; small tensors and position codes become float16.
    """
    packed = {}
    for name, tensor in state.items():
        if tensor.ndim < 2 or tensor.numel() <= _SMALLEST or name.endswith(_KEPT):
            packed[name] = tensor.half()
            continue
        rows = tensor.float().flatten(1)
        # The scale as stored, never zero, so that rows of zeros stay zero.
        scale = (rows.abs().amax(1) / 127).half().clamp(min=torch.finfo(torch.float16).tiny)
        packed[name] = (rows / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8).view_as(tensor)
        packed[name + _SCALE] = scale
    return packed


def dequantize_rows(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Undo `quantize_rows`, in float32; if a tensor or a scale is missing, a ValueError names the source."""
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
            raise ValueError(f'{source} is damaged: {name} is int8 without a scale for each row')
        weights[name] = (tensor.flatten(1).float() * scale.float()[:, None]).view_as(tensor)
    if scales:
        raise ValueError(f'{source} is damaged: {next(iter(scales))} has no matching int8 tensor')
    return weights


def first_line(error: BaseException) -> str:
    """Return the first line of an error, for a one-line message."""
    return (str(error).strip() or type(error).__name__).split('\n')[0]
