"""explora_geo: extended self-supervised pre-training of vision transformers for Earth observation."""

import importlib
from typing import TYPE_CHECKING, Any

from explora_geo._version import __version__

if TYPE_CHECKING:
    from explora_geo._adapt import adapt as adapt
    from explora_geo.adaptation import ExPLoRAConfig as ExPLoRAConfig
    from explora_geo.adaptation import explora as explora
    from explora_geo.checkpoints import load_backbone as load_backbone
    from explora_geo.models import create_vit as create_vit
    from explora_geo.trainers import ExPLoRATask as ExPLoRATask

# Resolved on first use, to keep `import explora_geo` cheap and the command line fast to start.
_EXPORTS = {
    'ExPLoRAConfig': 'explora_geo.adaptation',
    'ExPLoRATask': 'explora_geo.trainers',
    'adapt': 'explora_geo._adapt',
    'create_vit': 'explora_geo.models',
    'explora': 'explora_geo.adaptation',
    'load_backbone': 'explora_geo.checkpoints',
}

__all__ = ['ExPLoRAConfig', 'ExPLoRATask', '__version__', 'adapt', 'create_vit', 'explora', 'load_backbone']


def __getattr__(name: str) -> Any:
    """Import a public name on first access."""
    if name in _EXPORTS:
        return getattr(importlib.import_module(_EXPORTS[name]), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
