"""TorchGeo tasks: pre-training by ExPLoRA."""

from explora_geo.objectives import MAE, DINOv2  # lets a YAML name objectives by class name
from explora_geo.trainers.guard import GuardConfig
from explora_geo.trainers.optim import OptimConfig
from explora_geo.trainers.presets import PRESETS
from explora_geo.trainers.pretrain import ExPLoRATask

__all__ = ['MAE', 'PRESETS', 'DINOv2', 'ExPLoRATask', 'GuardConfig', 'OptimConfig']
