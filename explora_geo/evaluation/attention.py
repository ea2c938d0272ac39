"""Where a block looks: attention of the class token."""

from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from explora_geo._compat import attention_scores
from explora_geo.models.vit import ViT


@torch.no_grad()
def class_attention(vit: ViT, image: Tensor, block: int = -1, timestamps: Tensor | None = None) -> Tensor:
    """How much the class token of a block attends to each patch.

    Args:
        vit: Backbone.
        image: Normalized image, shape (B, C, H, W), or as the tokenizer says.
        block: Index of the block, counted from 0; negative ones from the end.
        timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).

    Returns:
        Attention by head, shape (B, heads, S, L); with that of the class token to itself it sums to one.
    """
    index = range(vit.depth)[block]
    x, slots = vit.eval().embed(image, timestamps)
    for before in vit.blocks[:index]:
        x = before(x)
    layer: Any = vit.blocks[index]
    weights = attention_scores(layer.attn, layer.norm1(x))
    return rearrange(weights[:, :, 0, 1:], 'b h (s l) -> b h s l', s=slots[0])
