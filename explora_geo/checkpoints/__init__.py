"""Reading everyone's weights and writing ours."""

from explora_geo.checkpoints.adapter import (
    AdapterHeader,
    apply_adapter,
    merge_adapter,
    read_adapter,
    save_adapter,
)
from explora_geo.checkpoints.files import atomic_path, read_state, write_state
from explora_geo.checkpoints.io import (
    BackboneWeights,
    load_backbone,
    load_weights,
    model_metadata,
    state_sha256,
)
from explora_geo.checkpoints.open import open_backbone

__all__ = [
    'AdapterHeader',
    'BackboneWeights',
    'apply_adapter',
    'atomic_path',
    'load_backbone',
    'load_weights',
    'merge_adapter',
    'model_metadata',
    'open_backbone',
    'read_adapter',
    'read_state',
    'save_adapter',
    'state_sha256',
    'write_state',
]
