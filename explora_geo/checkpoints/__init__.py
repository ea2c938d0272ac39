"""Read weights in any known layout, and write ours."""

from explora_geo.checkpoints.adapter import AdapterHeader, read_adapter, save_adapter, scale_adapter
from explora_geo.checkpoints.backbone import BackboneWeights, load_backbone, load_weights, merge_adapter
from explora_geo.checkpoints.facts import Facts, model_metadata
from explora_geo.checkpoints.files import atomic_path, read_state, state_sha256, write_state
from explora_geo.checkpoints.sources import StoredWeights, read_weights

__all__ = [
    'AdapterHeader',
    'BackboneWeights',
    'Facts',
    'StoredWeights',
    'atomic_path',
    'load_backbone',
    'load_weights',
    'merge_adapter',
    'model_metadata',
    'read_adapter',
    'read_state',
    'read_weights',
    'save_adapter',
    'scale_adapter',
    'state_sha256',
    'write_state',
]
