"""Files of tensors: read without unpickling code, written in one piece or not at all."""

import argparse
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# Where trainers nest the state dict, in the order in which they are looked for.
_NESTS = ('model', 'state_dict', 'teacher', 'module')


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path that becomes `path` only when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        with open(name, 'rb') as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes private files
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def read_state(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a state dict from a safetensors or PyTorch file.

    Args:
        path: File ending in `.safetensors`, or any file of `torch.save`.

    Returns:
        Tensors by name, with the nesting of trainers removed, and the metadata of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or would need to run code to be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no weights file {path}')
    if path.suffix == '.safetensors':
        try:
            with safe_open(path, 'pt') as file:
                return {k: file.get_tensor(k) for k in file.keys()}, file.metadata() or {}
        except (SafetensorError, OSError) as error:
            raise ValueError(f'{path} is damaged or no safetensors file ({error})') from error
    try:
        # Trainers keep their arguments beside the tensors: a plain container, safe to rebuild.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # the unpickler raises almost any kind on damaged bytes
        first = str(error).split('\n')[0]
        raise ValueError(
            f'{path} cannot be read as tensors alone, it is damaged or holds code ({first})'
        ) from error
    return unnest(content, path), {}


def unnest(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, out of the dictionary a trainer wrapped them in."""
    for key in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping):
        raise ValueError(f'{path} holds no state dict but a {type(content).__name__}')
    state = {k: v for k, v in content.items() if isinstance(v, Tensor)}
    if not state:
        raise ValueError(f'{path} holds no tensors')
    return state


def write_state(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically.

    Args:
        path: File to write.
        state: Tensors by name.
        metadata: Text entries of the header.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=dict(metadata))
