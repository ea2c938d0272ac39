"""Foreign state dicts to ours: pure functions from keys and tensors to keys and tensors.

Ours are timm's keys for the backbone, and `decoder.*` for MAE's decoder with patches in (c, p, q) order.
"""

from collections.abc import Mapping

from einops import rearrange
from torch import Tensor


def recognise(state: Mapping[str, Tensor]) -> str:
    """Name of the layout of a state dict.

    Args:
        state: Tensors by name.

    Returns:
        `mae` (with decoder), `explora_geo` (with decoder), `dinov2` (with mask token) or `timm`, which
        MAE's and DINOv2's encoder-only files share.
    """
    if 'decoder_pred.weight' in state:
        return 'mae'
    if 'decoder.pred.weight' in state:
        return 'explora_geo'
    if 'mask_token' in state:
        return 'dinov2'
    return 'timm'


def from_mae(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of a full MAE checkpoint to ours.

    The reference orders the pixels of a patch (p, q, c), we order them (c, p, q).
    """
    converted = {}
    for key, value in state.items():
        if key == 'mask_token':
            key = 'decoder.mask_token'
        elif key.startswith('decoder_'):
            key = key.replace('decoder_', 'decoder.', 1)
        if key.startswith('decoder.pred.'):
            channels = state['patch_embed.proj.weight'].shape[1]
            value = rearrange(value, '(pq c) ... -> (c pq) ...', c=channels)
        converted[key] = value
    return converted


def convert(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], str]:
    """Split any known state dict into backbone and objective parts with our keys.

    Args:
        state: Tensors by name, as the file holds them.

    Returns:
        Backbone tensors, other parts (`decoder.*`, `dino_head.*`, `ibot_head.*`), and the name of the layout.
    """
    layout = recognise(state)
    ours = from_mae(state) if layout == 'mae' else dict(state)
    parts = {k: v for k, v in ours.items() if k.startswith(('decoder.', 'dino_head.', 'ibot_head.'))}
    return {k: v for k, v in ours.items() if k not in parts}, parts, layout
