"""Attention whose queries and keys are rotated by the place of their token, as DINOv3's."""

from typing import Any

import torch
from timm.models.eva import EvaBlock
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo._compat import attention_scores
from explora_geo.models.position import rotate


class RotaryAttention(nn.Module):
    """Multi-head self-attention with rotary position; the keys are those of timm's `EvaAttention`.

    The bias of queries and values stands beside `qkv`, and keys have none: a bias of keys, which rotation
    makes count, was masked in DINOv3. The matrix itself is called as a module, so that LoRA may replace it.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        """Initialize a RotaryAttention.

        Args:
            dim: Token width D.
            num_heads: Attention heads.
            qkv_bias: Whether queries and values have a bias.
        """
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.fused_attn = True
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor, rope: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys, and values, each of shape (B, heads, N, head_dim).

        Args:
            x: Normed tokens, shape (B, N, D).
            rope: Rotations of the tokens, see `rotate`; None for none.
        """
        parts = list(self.qkv(x).chunk(3, dim=-1))
        if self.q_bias is not None:
            parts[0] = parts[0] + self.q_bias.to(x.dtype)
            parts[2] = parts[2] + self.v_bias.to(x.dtype)  # type: ignore[union-attr]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        return (q, k, v) if rope is None else (rotate(q, rope), rotate(k, rope), v)

    def forward(self, x: Tensor, rope: Tensor | None = None, **unused: Any) -> Tensor:
        """Attend, shape (B, N, D) -> (B, N, D); see `heads`."""
        q, k, v = self.heads(x, rope)
        if self.fused_attn:
            seen = F.scaled_dot_product_attention(q, k, v)
        else:
            seen = (self.scale * q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(seen.transpose(1, 2).flatten(2))


def rotary_block(dim: int, num_heads: int, qkv_bias: bool, **options: Any) -> EvaBlock:
    """Timm's block that passes rotations on, with attention that LoRA can adapt.

    Args:
        dim: Token width D.
        num_heads: Attention heads.
        qkv_bias: Whether queries and values have a bias.
        **options: Further arguments of timm's `EvaBlock`.
    """
    block: Any = EvaBlock(dim, num_heads, qkv_bias=False, **options)
    block.attn = RotaryAttention(dim, num_heads, qkv_bias)
    return block


def scores(attention: Any, x: Tensor, rope: Tensor | None, queries: int = 1) -> Tensor:
    """Attention of the first tokens to all tokens, shape (B, heads, queries, N).

    Args:
        attention: Attention of a block of a `ViT`.
        x: Normed tokens, shape (B, N, D).
        rope: Rotations of the tokens, where the ViT has rotary position.
        queries: Tokens that attend.
    """
    if not isinstance(attention, RotaryAttention):
        return attention_scores(attention, x, queries)
    q, k, _ = attention.heads(x, rope)
    return (attention.scale * q[:, :, :queries] @ k.transpose(-2, -1)).softmax(dim=-1)
