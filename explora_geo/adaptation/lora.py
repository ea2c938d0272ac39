"""Low-rank adaptation of slices of a linear layer."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo.adaptation.frozen import FrozenLinear


class LoRALinear(FrozenLinear):
    """A frozen linear layer plus low-rank updates of some of its output rows (equation 1).

    The layer keeps `weight` and `bias` under their own names, so plain checkpoints load and save as
    before; the update of slice `s` is `(alpha / r) · lora_b[s] @ lora_a[s]`. On a fused `qkv` with the
    slices q and v the rows of K have no parameters and cannot change.
    """

    def __init__(
        self,
        base: nn.Linear,
        slices: Mapping[str, tuple[int, int]],
        rank: int,
        alpha: float,
        dropout: float = 0.0,
    ) -> None:
        """Take over a linear layer; the output is unchanged until the first update.

        Args:
            base: Layer whose weight and bias are taken over (not copied).
            slices: Output rows `(start, stop)` to adapt, by name.
            rank: Rank r of every slice.
            alpha: Numerator of the scale alpha / r.
            dropout: Dropout on the input of the update, in training.
        """
        super().__init__(base)
        self.slices = dict(slices)
        self.rank, self.alpha, self.scale = rank, alpha, alpha / rank
        self.lora_dropout = nn.Dropout(dropout)
        new: dict[str, Any] = {'device': base.weight.device, 'dtype': base.weight.dtype}
        self.lora_a = nn.ParameterDict(
            {name: nn.Parameter(torch.empty(rank, base.in_features, **new)) for name in slices}
        )
        self.lora_b = nn.ParameterDict(
            {
                name: nn.Parameter(torch.zeros(stop - start, rank, **new))
                for name, (start, stop) in slices.items()
            }
        )
        if not base.weight.is_meta:
            for a in self.lora_a.values():
                nn.init.kaiming_uniform_(a, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer and its updates, shape (..., in) -> (..., out)."""
        # Without gradients, folding the update in costs less than running it beside half as many tokens
        # as the layer is wide. A weight held in lower precision would swallow updates below its last digit.
        exact = self.weight.dtype == next(iter(self.lora_a.values())).dtype
        dropping = self.training and self.lora_dropout.p > 0
        many = 2 * x[..., 0].numel() > self.in_features
        if exact and many and not dropping and not torch.is_grad_enabled():
            return F.linear(x, self.weight + self.delta(), self.bias)
        y = super().forward(x)
        # One matrix product for the A of all slices, then each B on its own rows. A ParameterDict sorts
        # its keys, so the order is that of the slices.
        low = F.linear(self.lora_dropout(x), torch.cat([self.lora_a[name] for name in self.slices]))
        if self.scale != 1:
            low = low * self.scale  # narrower than the output
        for part, (name, (start, stop)) in zip(
            low.split(self.rank, dim=-1), self.slices.items(), strict=True
        ):
            y[..., start:stop] += F.linear(part, self.lora_b[name])
        return y

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The update of the whole weight, shape (out, in)."""
        delta = torch.zeros_like(self.weight, dtype=next(iter(self.lora_b.values())).dtype)
        for name, (start, stop) in self.slices.items():
            delta[start:stop] = self.scale * (self.lora_b[name] @ self.lora_a[name])
        return delta

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same in evaluation mode."""
        return self._plain(self.weight + self.delta())


def merge_lora(module: nn.Module) -> nn.Module:
    """Fold every LoRA update into its weight, in place.

    Args:
        module: Model with `LoRALinear` and `FrozenLinear` layers.

    Returns:
        The same model with plain linear layers and plain state-dict keys.
    """
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenLinear):
                setattr(parent, name, child.merged())
    return module
