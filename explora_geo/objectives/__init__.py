"""Self-supervised objectives on an adapted backbone."""

from explora_geo.objectives.anchor import Anchor
from explora_geo.objectives.base import Objective, objective_class
from explora_geo.objectives.dinov2 import DINOv2, MaskConfig, PhaseConfig, TeacherConfig
from explora_geo.objectives.mae import MAE

__all__ = [
    'MAE',
    'Anchor',
    'DINOv2',
    'MaskConfig',
    'Objective',
    'PhaseConfig',
    'TeacherConfig',
    'objective_class',
]
