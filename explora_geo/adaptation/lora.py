"""Low-rank adaptation of slices of a linear layer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from explora_geo.adaptation.frozen import FrozenLinear

Span = tuple[int, int]


class LoRALinear(FrozenLinear):
    """Frozen linear layer with low-rank updates of some of its output rows (equation 1).

    `weight` and `bias` keep their names, so plain checkpoints load and save as usual. The update of slice
    `s` is `(alpha / r) · lora_b[s] @ lora_a[s]`. On a fused `qkv` with slices q and v, the rows of K have no
    parameters and cannot change.
    """

    def __init__(
        self, base: nn.Linear, slices: Mapping[str, Span], rank: int, alpha: float, dropout: float = 0.0
    ) -> None:
        """Wrap a linear layer; its output does not change until the first update.

        Args:
            base: Layer whose weight and bias are reused, not copied.
            slices: Output rows `(start, stop)` to adapt, by name.
            rank: Rank r of every slice.
            alpha: Numerator of the scale alpha / r.
            dropout: Dropout on the input of the update in training.
        """
        super().__init__(base)
        self.slices = dict(slices)
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.lora_dropout = nn.Dropout(dropout)
        new: dict[str, Any] = {'device': base.weight.device, 'dtype': base.weight.dtype}
        self.lora_a = nn.ParameterDict({s: torch.empty(rank, base.in_features, **new) for s in slices})
        self.lora_b = nn.ParameterDict(
            {s: torch.zeros(stop - start, rank, **new) for s, (start, stop) in slices.items()}
        )
        if not base.weight.is_meta:
            for a in self.lora_a.values():
                nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and its updates, shape (..., in) -> (..., out)."""
        # Without gradients, merging the update is cheaper than a separate pass once tokens exceed half the
        # layer's width. A low-precision weight would round small updates away.
        exact = self.weight.dtype == next(iter(self.lora_a.values())).dtype
        dropping = self.training and self.lora_dropout.p > 0
        many = 2 * x[..., 0].numel() > self.in_features
        if exact and many and not dropping and not torch.is_grad_enabled():
            return F.linear(x, self.weight + self.delta(), self.bias)
        # One matrix product for the A of all slices, then each B on its own rows. Iterate over `slices` for
        # the order, as a ParameterDict sorts its keys.
        a, spans = torch.cat([self.lora_a[name] for name in self.slices]), tuple(self.slices.values())
        bs = [self.lora_b[name] for name in self.slices]
        frozen = not any(p is not None and p.requires_grad for p in (self.weight, self.bias))
        if frozen and not dropping and not torch.compiler.is_compiling():
            auto = torch.is_autocast_enabled(x.device.type)
            dtype = torch.get_autocast_dtype(x.device.type) if auto else x.dtype
            bias = None if self.bias is None else self._low(self.bias).to(dtype)
            rest = (t.to(dtype) for t in (x, self._low(self.weight), a, *bs))
            return _Update.apply(self.scale, spans, bias, *rest)
        y = super().forward(x)
        low = F.linear(self.lora_dropout(x), a)
        if self.scale != 1:
            low = low * self.scale  # cheaper here than on the wider output
        for part, (start, stop), b in zip(low.split(self.rank, dim=-1), spans, bs, strict=True):
            y[..., start:stop] += F.linear(part, b)
        return y

    @torch.no_grad()
    def delta(self) -> Tensor:
        """Return the update of the whole weight, shape (out, in)."""
        delta = torch.zeros_like(self.weight, dtype=next(iter(self.lora_a.values())).dtype)
        for name, (start, stop) in self.slices.items():
            delta[start:stop] = self.scale * (self.lora_b[name] @ self.lora_a[name])
        return delta

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return a plain linear layer with the same output in evaluation mode."""
        return self._plain(self.weight + self.delta())


class _Update(torch.autograd.Function):
    """A frozen layer and its updates in one dtype, with one kernel per matrix product.

    With separate autograd operations, each addition to an output slice would copy the whole gradient.
    """

    @staticmethod
    def forward(
        ctx: Any,
        scale: float,
        spans: Sequence[Span],
        bias: Tensor | None,
        x: Tensor,
        weight: Tensor,
        a: Tensor,
        *bs: Tensor,
    ) -> Tensor:
        """Compute the output, (..., in), (out, in), (S·r, in) and S times (stop - start, r) -> (..., out)."""
        flat = x.reshape(-1, x.shape[-1])
        y = F.linear(flat, weight, bias)
        low = F.linear(flat, a)
        if scale != 1:
            low *= scale
        for part, (start, stop), b in zip(low.chunk(len(bs), dim=-1), spans, bs, strict=True):
            y[:, start:stop].addmm_(part, b.T)
        ctx.scale, ctx.spans, ctx.shape = scale, spans, x.shape
        ctx.save_for_backward(flat, weight, low, a, *bs)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Return the gradients of x, a and each b."""
        flat, weight, low, a, *bs = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        slices = [rows[:, start:stop] for start, stop in ctx.spans]
        grad_bs = [part.T @ low_part for part, low_part in zip(slices, low.chunk(len(bs), -1), strict=True)]
        grad_low = torch.cat([part @ b for part, b in zip(slices, bs, strict=True)], dim=-1)
        if ctx.scale != 1:
            grad_low *= ctx.scale
        grad_x = None
        if ctx.needs_input_grad[3]:
            grad_x = (rows @ weight).addmm_(grad_low, a).view(ctx.shape)
        return None, None, None, grad_x, None, grad_low.T @ flat, *grad_bs


def merge_lora(module: nn.Module) -> nn.Module:
    """Merge all LoRA updates into their weights in place, which restores plain layers and state-dict keys."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenLinear):
                setattr(parent, name, child.merged())
    return module
