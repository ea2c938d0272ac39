"""Self-contained files of tuned models: weights, what they predict and on which images."""

import copy
import json
from pathlib import Path
from typing import Any

import torch

from explora_geo import __version__
from explora_geo.adaptation import merge_lora
from explora_geo.checkpoints import read_state, write_state
from explora_geo.trainers.tuning import TuningTask

_FORMAT = 'explora_geo.task'
# What only training needs: a file that is read is not trained on.
_TRAINING = ('weights', 'adapter', 'adaptation', 'optim', 'lr', 'regularisation', 'grad_checkpointing')


def save_task(path: str | Path, task: TuningTask) -> None:
    """Write a tuned model with LoRA merged, atomically.

    Args:
        path: File to write, `.safetensors`.
        task: Tuned task.
    """
    model = merge_lora(copy.deepcopy(task.model).cpu())
    hparams = {k: v for k, v in task.hparams.items() if k not in _TRAINING and k[0] != '_'}
    header = {
        'task': type(task).__name__,
        'hparams': {**hparams, 'tuning': 'linear'},
        'data': task.data,
        'version': __version__,
    }
    write_state(path, model.state_dict(), {'format': _FORMAT, 'task': json.dumps(header)})


def load_task(path: str | Path) -> TuningTask:
    """Read a tuned model from its file or from a Lightning checkpoint.

    Args:
        path: `model.safetensors` of a run, or a `.ckpt` file.

    Returns:
        The task in evaluation mode; `task.data` holds bands, statistics and class names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged or no tuned model.
    """
    path = Path(path)
    if path.suffix == '.ckpt':
        return _from_checkpoint(path)
    state, metadata = read_state(path)
    if metadata.get('format') != _FORMAT:
        raise ValueError(
            f'{path} holds no tuned model: its header lacks format {_FORMAT}. Give model.safetensors or a '
            'checkpoint of a run of ClassificationTask, SegmentationTask or RegressionTask'
        )
    try:
        header = json.loads(metadata['task'])
        task = _class(header['task'])(**header['hparams'])
        task.data = header['data']
        task.model.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError, ValueError) as error:
        raise ValueError(f'{path} is incomplete or damaged ({str(error).splitlines()[0]})') from error
    return task.eval()


def _from_checkpoint(path: Path) -> TuningTask:
    if not path.is_file():
        raise FileNotFoundError(f'no checkpoint {path}')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
        kind = content['explora_geo']['task']
    except Exception as error:  # the unpickler raises almost any kind on damaged bytes
        raise ValueError(f'{path} is no checkpoint of a tuned model, or damaged') from error
    task = _class(kind).load_from_checkpoint(path, map_location='cpu', weights_only=True)
    return task.eval()


def _class(name: str) -> Any:
    from explora_geo import trainers

    found = getattr(trainers, name, None)
    if not (isinstance(found, type) and issubclass(found, TuningTask)):
        raise ValueError(f'unknown task {name!r}')
    return found
