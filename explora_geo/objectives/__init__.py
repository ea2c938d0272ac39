"""Self-supervised objectives for adapted backbones."""

from explora_geo.objectives.alignment import PatchAlignment
from explora_geo.objectives.anchor import Anchor, AnchorConfig
from explora_geo.objectives.base import Objective, objective_class
from explora_geo.objectives.dinov2 import DINOv2, LossConfig
from explora_geo.objectives.gram import GramConfig
from explora_geo.objectives.mae import MAE
from explora_geo.objectives.masking import MaskConfig
from explora_geo.objectives.schedules import PhaseConfig
from explora_geo.objectives.teacher import TeacherConfig

__all__ = [
    'MAE',
    'Anchor',
    'AnchorConfig',
    'DINOv2',
    'GramConfig',
    'LossConfig',
    'MaskConfig',
    'Objective',
    'PatchAlignment',
    'PhaseConfig',
    'TeacherConfig',
    'objective_class',
]
