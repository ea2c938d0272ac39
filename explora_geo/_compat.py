"""The one place that knows what other packages do not promise: private names, and both lines of TorchGeo.

A test looks at each of them, and says in a sentence what an upgrade has moved. What is heavy is imported when
it is asked for: models need neither Lightning nor TorchGeo.
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

# Where classes are that are imported when they are asked for; the first module that there is counts.
_PLACES = {
    'BaseTask': ('torchgeo.tasks', 'torchgeo.trainers'),  # TorchGeo 0.10; 0.8 and 0.9
    'CPLE_BaseError': ('rasterio._err',),
    'CPLE_OutOfMemoryError': ('rasterio._err',),
}
# Decoders of segmentation-models-pytorch, which exports whole models alone
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
    """A decoder class of segmentation-models-pytorch, such as `UPerNetDecoder`."""
    module = importlib.import_module(f'segmentation_models_pytorch.decoders.{_DECODERS[name]}.decoder')
    return getattr(module, name)


def fuse_attention(module: nn.Module, fused: bool) -> None:
    """Use torch's fused attention in all blocks, timm's and ours, or do without."""
    for part in module.modules():
        if hasattr(part, 'fused_attn'):
            attention: Any = part
            attention.fused_attn = fused


def log_hparams(task: 'LightningModule', values: dict[str, Any]) -> None:
    """Replace hyper-parameters of a task, also in what loggers write."""
    initial: Any = task._hparams_initial
    task.hparams.update(values)
    initial.update(values)


def data_fetcher(trainer: 'Trainer') -> Any:
    """What the training loop asks for batches; None before it starts."""
    return trainer.fit_loop._data_fetcher


def slurm_requeue_signal(trainer: 'Trainer') -> Signals | None:
    """The signal by which Slurm announces the end of a job that it queues again; None without one."""
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment) and environment.auto_requeue:
        return environment.requeue_signal or SIGUSR1
    return None


def unscaled_by_clipping(optimizer: torch.optim.Optimizer) -> None:
    """Have Lightning clip the gradients of a fused optimizer, which it refuses for fear of scaled ones."""
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]


def many_graphs() -> AbstractContextManager[None]:
    """Let compiled blocks have as many graphs as they need, where torch would give up after a few.

    With LoRA, in full, crops of two sizes, a teacher, every rate of stochastic depth: 128 of a block.
    """
    config: Any = torch._dynamo.config
    changed: AbstractContextManager[None] = config.patch(recompile_limit=max(config.recompile_limit, 128))
    return changed


def weight_norm(direction: Tensor, gain: Tensor) -> Tensor:
    """Rows of a matrix, shape (K, D), with lengths, shape (K, 1): torch's kernel, one pass each way."""
    return torch._weight_norm(direction, gain, 0)
