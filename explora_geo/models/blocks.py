"""How timm's blocks run: their attention, rotated or not, and without computing what is dropped."""

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

#: Rate of stochastic depth above which it is worth to compute only what is kept, as in DINOv2.
SUBSET_RATE = 0.1


@dataclass(frozen=True)
class TrunkConfig:
    """How the blocks of a ViT are made, which its weights decide."""

    mlp_ratio: float = 4  # hidden width of the MLP over D; with `swiglu` it counts both halves
    swiglu: bool = False  # gated MLPs (DINOv2's ViT-g)
    init_values: float | None = None  # start of LayerScale (DINOv2 and 3)
    norm_eps: float = 1e-6  # of all norms; 1e-5 of DINOv3
    registers: int = 0  # register tokens R beside the class token (Darcet et al. 2024)
    rotary: RotaryConfig | None = None  # rotations of queries and keys (DINOv3) instead of a table
    qkv_bias: bool = True  # with `rotary`, whether queries and values have a bias; otherwise they do


class Attention(nn.Module):
    """Multi-head self-attention; the keys are those of timm's `Attention`."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        """Initialize an Attention of tokens of width `dim`, with a bias or none."""
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.fused_attn: bool | None = None  # torch's fused attention, where it is the faster one if None
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def heads(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, ...]:
        """Queries, keys and values of normed tokens, (B, N, D) -> (B, heads, N, head_dim).

        `rope` are rotations of the tokens, which `RotaryAttention` alone takes.
        """
        return self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()

    def forward(self, x: Tensor, rope: Tensor | None = None, **unused: Any) -> Tensor:
        """Attend, shape (B, N, D) -> (B, N, D); see `heads`."""
        q, k, v = self.heads(x, rope)
        # In bfloat16 a CPU's backward pass of the fused one takes longer than all products of a block.
        slow = q.requires_grad and q.device.type == 'cpu' and q.dtype == torch.bfloat16
        if not slow if self.fused_attn is None else self.fused_attn:
            seen = F.scaled_dot_product_attention(q, k, v)
        else:
            seen = (self.scale * q @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        return self.proj(seen.transpose(1, 2).flatten(2))


class RotaryAttention(Attention):
    """Self-attention with rotary position; the keys are those of timm's `EvaAttention`.

    The bias of queries and values stands beside `qkv`, and keys have none: a bias of keys, which rotation
    makes count, was masked in DINOv3. The matrix itself is called as a module, so that LoRA may replace it.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool = True) -> None:
        """Initialize a RotaryAttention; `qkv_bias` says whether queries and values have a bias."""
        super().__init__(dim, num_heads, qkv_bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

    def heads(self, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, ...]:
        """Rotated queries, rotated keys, and values; see `rotate` for rotations, of which None are none."""
        parts = list(self.qkv(x).chunk(3, dim=-1))
        if self.q_bias is not None:
            parts[0] = parts[0] + self.q_bias.to(parts[0].dtype)  # of autocast, where x is not
            parts[2] = parts[2] + self.v_bias.to(parts[2].dtype)  # type: ignore[union-attr]
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        if rope is None:
            return q, k, v
        rope = rope.to(q.dtype)
        return rotate(q, rope), rotate(k, rope), v


def build_block(dim: int, num_heads: int, trunk: TrunkConfig, drop_path: float = 0.0) -> nn.Module:
    """Timm's block with our attention, which LoRA can adapt; a rotary one passes rotations on."""
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
    """Run a block; with much stochastic depth its branches see a part of the batch only.

    Each branch runs for as many images as are kept on average, drawn anew, and counts for the others: the
    expectation is that of dropping image by image (Oquab et al. 2024, section 5). A compiled block drops
    image by image.

    Args:
        block: Block of a `ViT`.
        x: Tokens, shape (B, N, D).
        rope: Rotations, where positions are rotary; see `rotate`.
        recompute: Keep no activations for the backward pass.
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
