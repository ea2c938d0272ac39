"""TorchGeo tasks: pre-training by ExPLoRA, and tuning on labels."""

from explora_geo.objectives import MAE, DINOv2  # lets a YAML name objectives by class name
from explora_geo.trainers.guard import GuardConfig
from explora_geo.trainers.optim import OptimConfig
from explora_geo.trainers.options import Regularization
from explora_geo.trainers.presets import PRESETS
from explora_geo.trainers.pretrain import CropLink, ExPLoRATask
from explora_geo.trainers.tasks import ClassificationTask, RegressionTask, SegmentationTask, load_task
from explora_geo.trainers.tuning import save_task

__all__ = [
    'MAE',
    'PRESETS',
    'ClassificationTask',
    'CropLink',
    'DINOv2',
    'ExPLoRATask',
    'GuardConfig',
    'OptimConfig',
    'RegressionTask',
    'Regularization',
    'SegmentationTask',
    'load_task',
    'save_task',
]
