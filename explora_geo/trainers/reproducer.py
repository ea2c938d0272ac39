"""A step that went wrong, in a file from which it can be repeated."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor

from explora_geo.checkpoints.files import atomic_path
from explora_geo.objectives import Objective
from explora_geo.trainers.folder import run_folder
from explora_geo.trainers.kernels import unfuse_attention
from explora_geo.trainers.length import steps_per_epoch

if TYPE_CHECKING:
    from explora_geo.trainers.steady import SteadyTask


def write_reproducer(task: 'SteadyTask', batch: Mapping[str, Any], seed: int) -> tuple[list[str], Path]:
    """Write batch, state and seed of a training step; `torch.load` reads them without running code.

    Args:
        task: Task whose parameters are those of the step, before the optimiser moves them.
        batch: The batch as the model saw it.
        seed: Random seed of the step.

    Returns:
        Names of the batch's files, and the file: `step_NNNNNN_rank_N.pt` in the run's folder.
    """
    trainer = task.trainer
    loader: Any = trainer.train_dataloader
    names = list(loader.names()) if hasattr(loader, 'names') else []
    content = {
        'files': names,
        'step': task.global_step,
        'seed': seed,
        'precision': str(trainer.precision),
        'length': [float(trainer.estimated_stepping_batches), steps_per_epoch(trainer)],
        'batch': {k: _plain(v) for k, v in batch.items()},
        'checkpoint': {'state_dict': {**task.state_dict(), **task.buffers_before}},
    }
    task.on_save_checkpoint(content['checkpoint'])  # leaves out what the starting weights hold
    file = run_folder(trainer) / f'step_{task.global_step:06d}_rank_{task.global_rank}.pt'
    with atomic_path(file) as temporary:
        torch.save(content, temporary)
    return names, file


def replay(task: 'SteadyTask', file: str | Path, device: str | torch.device = 'cpu') -> dict[str, Tensor]:
    """Repeat the step of such a file.

    Args:
        task: Task built as for the run; it takes the state of the file.
        file: What a run that was stopped left behind.
        device: Where to compute.

    Returns:
        Losses by name, with gradients attached.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds no step, or that of another task.
    """
    from explora_geo.trainers.steady import seed_all

    if not Path(file).is_file():
        raise FileNotFoundError(f'no file {file} of a step')
    content = torch.load(file, map_location='cpu', weights_only=True)
    if not isinstance(content, dict) or 'checkpoint' not in content:
        raise ValueError(f'{file} holds no step of a run: give a file step_NNNNNN_rank_N.pt of a run')
    task.on_load_checkpoint(content['checkpoint'])
    task.load_state_dict(content['checkpoint']['state_dict'])
    task.to(device).train()
    if torch.device(device).type == 'cpu' and content['precision'].startswith('bf16'):
        unfuse_attention(task)
    if isinstance(task.model, Objective):
        task.model.plan(int(content['length'][0]), content['length'][1])
    precision = _precision(content['precision'], torch.device(device).type)
    precision.convert_module(task)
    batch = precision.convert_input({k: _on(v, device) for k, v in content['batch'].items()})
    seed_all(content['seed'])
    with precision.train_step_context():
        return task.losses(batch, content['step'])


def _precision(name: str, device: str) -> Precision:
    """What Lightning does to compute in a precision on a type of device."""
    if name in ('16-mixed', 'bf16-mixed'):
        return MixedPrecision(name, device)  # type: ignore[arg-type]
    trainer = Trainer(accelerator='cpu', precision=name, logger=False, enable_checkpointing=False)  # type: ignore[arg-type]
    return trainer.precision_plugin


def _plain(value: Any) -> Any:
    """Values that are read without code: tensors on the CPU, lists of them, text."""
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _on(value: Any, device: Any) -> Any:
    if isinstance(value, list):
        return [_on(v, device) for v in value]
    return value.to(device) if isinstance(value, Tensor) else value
