"""All uses of unstable APIs of other packages: private names, and both lines of TorchGeo.

A test checks each of them and names whatever an upgrade moved. Heavy packages are imported on demand: models
need neither Lightning nor TorchGeo.
"""

import importlib
from contextlib import AbstractContextManager
from signal import SIGUSR1, Signals
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from torchvision.models._api import Weights, WeightsEnum

if TYPE_CHECKING:
    from lightning.pytorch import LightningModule, Trainer
    from rasterio._err import CPLE_BaseError as CPLE_BaseError
    from rasterio._err import CPLE_OutOfMemoryError as CPLE_OutOfMemoryError
    from torchgeo.trainers import BaseTask as BaseTask

__all__ = ['BatchNorm', 'Weights', 'WeightsEnum']  # imported for others

# Modules of classes that are imported on demand; the first module that exists is used.
_PLACES = {
    'BaseTask': ('torchgeo.tasks', 'torchgeo.trainers'),  # TorchGeo 0.10; 0.8 and 0.9
    'CPLE_BaseError': ('rasterio._err',),
    'CPLE_OutOfMemoryError': ('rasterio._err',),
}
# Decoders of segmentation-models-pytorch, which exports only whole models
_DECODERS = {
    'UPerNetDecoder': 'upernet',
    'FPNDecoder': 'fpn',
    'PANDecoder': 'pan',
    'PSPDecoder': 'pspnet',
    'DPTDecoder': 'dpt',
    'DPTSegmentationHead': 'dpt',
}


def __getattr__(name: str) -> Any:
    """Import a class of `_PLACES` on first access."""
    for place in _PLACES.get(name, ()):
        try:
            return getattr(importlib.import_module(place), name)
        except ModuleNotFoundError:
            continue
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def smp_decoder(name: str) -> Any:
    """Return a decoder class of segmentation-models-pytorch, such as `UPerNetDecoder`."""
    module = importlib.import_module(f'segmentation_models_pytorch.decoders.{_DECODERS[name]}.decoder')
    return getattr(module, name)


def fuse_attention(module: nn.Module, fused: bool) -> None:
    """Turn torch's fused attention on or off in all blocks, timm's and ours."""
    for part in module.modules():
        if hasattr(part, 'fused_attn'):
            attention: Any = part
            attention.fused_attn = fused


def log_hparams(task: 'LightningModule', values: dict[str, Any]) -> None:
    """Replace hyper-parameters of a task, and in the loggers' output."""
    initial: Any = task._hparams_initial
    task.hparams.update(values)
    initial.update(values)


def data_fetcher(trainer: 'Trainer') -> Any:
    """Return the data fetcher of the training loop; None before it starts."""
    return trainer.fit_loop._data_fetcher


def slurm_requeue_signal(trainer: 'Trainer') -> Signals | None:
    """Return the signal with which Slurm announces the end of a job to requeue; None without one."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal or SIGUSR1
    return None


def unscaled_by_clipping(optimizer: torch.optim.Optimizer) -> None:
    """Let Lightning clip gradients of a fused optimizer, which it refuses because they may be scaled."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def many_graphs() -> AbstractContextManager[None]:
    """Raise torch's limit on graphs per compiled block to at least 128.

    LoRA and full training, two crop sizes, a teacher, and each stochastic-depth rate need their own graphs.
    """
    config: Any = torch._dynamo.config
    changed: AbstractContextManager[None] = config.patch(recompile_limit=max(config.recompile_limit, 128))
    return changed


def weight_norm(direction: Tensor, gain: Tensor) -> Tensor:
    """Scale the rows of a matrix, shape (K, D), to lengths, shape (K, 1), by torch's one-pass kernel."""
    return torch._weight_norm(direction, gain, 0)
