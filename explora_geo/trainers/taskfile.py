"""Self-contained files of tuned models: weights, what they predict and on which images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from explora_geo.checkpoints import read_state
from explora_geo.checkpoints.files import check_exact, check_storage, read_checkpoint, unnest
from explora_geo.checkpoints.metadata import check_sizes
from explora_geo.trainers.classification import ClassificationTask
from explora_geo.trainers.regression import RegressionTask
from explora_geo.trainers.segmentation import SegmentationTask
from explora_geo.trainers.tuning import FORMAT, TRAINING, TuningTask

# The tasks that a file may name
_TASKS: dict[str, type[TuningTask]] = {
    task.__name__: task for task in (ClassificationTask, SegmentationTask, RegressionTask)
}


def load_task(path: str | Path) -> TuningTask:
    """Read a tuned model from its file or from a Lightning checkpoint.

    Args:
        path: `model.safetensors` of a run, or a `.ckpt` file.

    Returns:
        The task in evaluation mode; `task.data` holds bands, statistics and class names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no tuned model, or states another one than it holds.
    """
    path = Path(path)
    if path.suffix == '.ckpt':
        return _from_checkpoint(path)
    state, metadata = read_state(path)
    if metadata.get('format') != FORMAT:
        raise ValueError(
            f'{path} holds no tuned model: its header lacks format {FORMAT}. Give model.safetensors or a '
            'checkpoint of a run of ClassificationTask, SegmentationTask or RegressionTask'
        )
    try:
        header = json.loads(metadata['task'])
        kind, hparams, data = header['task'], _without(header['hparams'], TRAINING), _checked(header['data'])
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    plan = _build(path, kind, hparams, numbers=False)
    check_exact(state, plan.model.state_dict(), path)
    task = _build(path, kind, hparams)
    task.model.load_state_dict(state)
    task.data = data
    return task.eval()


def _from_checkpoint(path: Path) -> TuningTask:
    content = read_checkpoint(path, mmap=True)
    try:
        kind, data = content['explora_geo']['task'], _checked(content['explora_geo']['data'])
        # Lightning's own reader would call whatever the file names as its instantiator.
        hparams = _without(content['hyper_parameters'], ('weights', 'adapter'))
        state = dict(content['state_dict'])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error
    check_storage(unnest(state, path), path)
    plan = _build(path, kind, hparams, numbers=False)
    check_exact(state, plan.state_dict(), path)
    task = _build(path, kind, hparams)
    task.load_state_dict(state)
    task.data = data
    return task.eval()


def _build(path: Path, kind: Any, hparams: dict[str, Any], numbers: bool = True) -> TuningTask:
    """The task that a file describes, or one without numbers, which takes no memory."""
    if kind not in _TASKS:
        raise _damaged(path, ValueError(f'unknown task {kind!r}'))
    try:
        check_sizes(hparams['img_size'], hparams['patch_size'])
        with torch.device('cpu' if numbers else 'meta'):
            task = _TASKS[kind](**hparams)
    except Exception as error:  # whatever is no task fails here, in many ways
        raise _damaged(path, error) from error
    return task


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = f'it lacks {error}' if isinstance(error, KeyError) else str(error) or type(error).__name__
    return ValueError(f'{path} is no tuned model, incomplete or damaged ({reason.splitlines()[0]})')


def _without(hparams: Any, names: Sequence[str]) -> dict[str, Any]:
    """Arguments of a task but for some, and for Lightning's own."""
    return {k: v for k, v in hparams.items() if k not in names and k[0] != '_'}


def _checked(data: Any) -> dict[str, Any]:
    """What a file says of its images, if it is of the right types."""
    lists = ('bands', 'mean', 'std', 'classes', 'colours')
    wrong = [k for k in lists if not isinstance(data.get(k, []), list)]
    if wrong:
        raise ValueError(f'{wrong[0]} is no list')
    return dict(data)
