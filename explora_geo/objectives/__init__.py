"""Self-supervised objectives on an adapted backbone."""

from explora_geo.objectives.base import Objective
from explora_geo.objectives.mae import MAE

__all__ = ['MAE', 'Objective']
