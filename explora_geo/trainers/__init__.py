"""TorchGeo tasks: pre-training by ExPLoRA."""

from explora_geo.objectives import MAE  # lets a YAML name the objective by its class name
from explora_geo.trainers.optim import OptimConfig
from explora_geo.trainers.presets import PRESETS
from explora_geo.trainers.pretrain import ExPLoRATask

__all__ = ['MAE', 'PRESETS', 'ExPLoRATask', 'OptimConfig']
