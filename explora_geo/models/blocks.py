"""Run timm's blocks with plain or rotary attention, and skip images that stochastic depth drops."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers.mlp import SwiGLUPacked
from timm.models.eva import EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from explora_geo.models.position import RotaryConfig, rotate

#: Stochastic-depth rate above which computing only the kept images pays off, as in DINOv2.
SUBSET_RATE = 0.1


@dataclass(frozen=True)
class TrunkConfig:
    """Block settings of a ViT, determined by its weights."""

    mlp_ratio: float = 4  # hidden width of the MLP over D; with `swiglu`, of both halves together
    swiglu: bool = False  # gated MLPs (DINOv2's ViT-g)
    init_values: float | None = None  # initial LayerScale (DINOv2 and DINOv3)
    norm_eps: float = 1e-6  # epsilon of all norms; 1e-5 in DINOv3
    registers: int = 0  # register tokens R beside the class token (Darcet et al. 2024)
    rotary: RotaryConfig | None = None  # rotary positions (DINOv3) instead of a position table
    qkv_bias: bool = True  # bias of queries and values with `rotary`; always on without


class Attention(nn.Module):
    """Multi-head self-attention with the state-dict keys of timm's `Attention`."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        """Initialize an Attention for tokens of width `dim`, with or without a bias."""
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.fused_attn: bool | None = None  # use torch's fused attention; where it is faster if None
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return queries, keys and values of normed tokens, (B, N, D) -> (B, heads, N, head_dim).

        Only `RotaryAttention` uses `rope`, the rotations of the tokens.
        """
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x: Tensor, rope: Tensor | None = None, **unused: Any) -> Tensor:
        """Attend, shape (B, N, D) -> (B, N, D); see `heads`."""
        q, k, v = self.heads(x, rope)
        # On a CPU in bfloat16, fused attention's backward takes longer than all matrix products of a block.
        slow = q.requires_grad and q.device.type == 'cpu' and q.dtype == torch.bfloat16
        if not slow if self.fused_attn is None else self.fused_attn:
            seen = F.scaled_dot_product_attention(q, k, v)
        else:
            seen = (self.scale * q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(seen.transpose(1, 2).flatten(2))


class RotaryAttention(Attention):
    """Self-attention with rotary positions and the state-dict keys of timm's `EvaAttention`.

    Queries and values have biases beside `qkv`. Keys have none: rotation would give a key bias an effect,
    and DINOv3 masked it. The `qkv` matrix is called as a module so that LoRA can replace it.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        """Initialize a RotaryAttention; `qkv_bias` gives queries and values a bias."""
        super().__init__(dim, num_heads, qkv_bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

    def heads(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return rotated queries, rotated keys, and values; no rotation if `rope` is None (see `rotate`)."""
        parts = list(self.qkv(x).chunk(3, dim=-1))
        if self.q_bias is not None:
            parts[0] = parts[0] + self.q_bias.to(parts[0].dtype)  # autocast's dtype, which x may not have
            parts[2] = parts[2] + self.v_bias.to(parts[2].dtype)  # type: ignore[union-attr]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if rope is None:
            return q, k, v
        rope = rope.to(q.dtype)
        return rotate(q, rope), rotate(k, rope), v


def build_block(dim: int, num_heads: int, trunk: TrunkConfig, drop_path: float = 0.0) -> nn.Module:
    """Build timm's block with our attention, which LoRA can adapt; a rotary block passes rotations on."""
    options: dict[str, Any] = {
        'mlp_ratio': trunk.mlp_ratio,
        'init_values': trunk.init_values,
        'drop_path': drop_path,
        'norm_layer': partial(nn.LayerNorm, eps=trunk.norm_eps),
    }
    block: Any
    if trunk.rotary:
        block = EvaBlock(dim, num_heads, qkv_bias=False, **options)
        block.attn = RotaryAttention(dim, num_heads, trunk.qkv_bias)
        return block
    gated: dict[str, Any] = {'mlp_layer': SwiGLUPacked, 'act_layer': nn.SiLU} if trunk.swiglu else {}
    block = Block(dim, num_heads, **options, **gated)
    block.attn = Attention(dim, num_heads)
    return block


def run_block(block: Any, x: Tensor, rope: Tensor | None = None, recompute: bool = False) -> Tensor:
    """Run a block; at high stochastic-depth rates its branches see only part of the batch.

    Each branch runs on a fresh draw of as many images as are kept on average and is scaled up to match: the
    expectation equals that of dropping per image (Oquab et al. 2024, section 5). A compiled block drops
    per image.

    Args:
        block: Block of a `ViT`.
        x: Tokens, shape (B, N, D).
        rope: Rotations for rotary positions; see `rotate`.
        recompute: Recompute activations in the backward pass instead of storing them.
    """
    if recompute and torch.is_grad_enabled():
        return checkpoint(run_block, block, x, rope, use_reentrant=False)
    rate = getattr(block.drop_path1, 'drop_prob', 0.0) or 0.0
    compiled = getattr(block, '_compiled_call_impl', None) is not None
    if not block.training or rate <= SUBSET_RATE or len(x) == 1 or compiled:
        return block(x) if rope is None else block(x, rope)

    def attend(y: Tensor, rows: Tensor) -> Tensor:
        y = block.norm1(y)
        if rope is None:
            return block.ls1(block.attn(y))
        seen = block.attn(y, rope=rope[:, rows] if rope.ndim == 5 else rope)
        return seen if block.gamma_1 is None else block.gamma_1 * seen

    def think(y: Tensor, rows: Tensor) -> Tensor:
        y = block.mlp(block.norm2(y))
        if rope is None:
            return block.ls2(y)
        return y if block.gamma_2 is None else block.gamma_2 * y

    return _add_for_some(_add_for_some(x, rate, attend), rate, think)


def _add_for_some(x: Tensor, rate: float, branch: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    kept = max(1, int(len(x) * (1 - rate)))
    rows = torch.randperm(len(x), device=x.device)[:kept]
    return x.index_add(0, rows, branch(x[rows], rows).to(x.dtype), alpha=len(x) / kept)
