"""Projection heads for self-distillation."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo._compat import weight_norm


@dataclass(frozen=True)
class HeadConfig:
    """Sizes of a projection head. The defaults suit thousands of images; DINOv2's suit millions.

    Attributes:
        prototypes: Number of outputs K (DINOv2: 65536).
        hidden_dim: Width of the hidden layers (DINOv2: 2048).
        bottleneck_dim: Width of the layer before the prototypes (DINOv2: 256).
        num_layers: Layers before the prototypes (DINOv2: 3).
        train_gain: Train the gain of each prototype, as DINOv2 does; a fixed gain of 1 steadies short runs.
        load: Start from the heads in the source weights if their sizes match.
    """

    prototypes: int = 4096
    hidden_dim: int = 1024
    bottleneck_dim: int = 256
    num_layers: int = 3
    train_gain: bool = False
    load: bool = True

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name, least in (('prototypes', 2), ('hidden_dim', 1), ('bottleneck_dim', 1), ('num_layers', 1)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} of a head must be at least {least}, got {getattr(self, name)}')


class LastLayer(nn.Module):
    """Weight-normalized linear layer without bias, with one direction and one gain per prototype.

    The keys are those of the deprecated `torch.nn.utils.weight_norm`, which DINOv2's checkpoints use.
    """

    def __init__(self, in_features: int, out_features: int, train_gain: bool = False) -> None:
        """Initialize a LastLayer with gain 1, trainable if `train_gain`."""
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1), requires_grad=train_gain)
        self.weight_v = nn.Parameter(torch.empty(out_features, in_features))
        nn.init.trunc_normal_(self.weight_v, std=0.02)

    def weight(self) -> Tensor:
        """Return the prototypes, shape (K, in), in autocast's dtype."""
        weight = weight_norm(self.weight_v, self.weight_g)
        device = weight.device.type
        return weight.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else weight

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute gain times cosine for unit-length inputs, (..., in) -> (..., K); see `ProjectionHead`."""
        return F.linear(x, self.weight() if weight is None else weight)


class ProjectionHead(nn.Module):
    """DINOv2's head with its key names: an MLP, L2 normalization, and weight-normalized prototypes."""

    def __init__(self, in_dim: int, config: HeadConfig) -> None:
        """Initialize a ProjectionHead with random weights for tokens of width `in_dim`."""
        super().__init__()
        hidden = [config.hidden_dim] * (config.num_layers - 1)
        layers: list[Any] = []
        for inputs, outputs in pairwise([in_dim, *hidden, config.bottleneck_dim]):
            layers += [nn.Linear(inputs, outputs), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        for layer in layers[::2]:
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        self.last_layer = LastLayer(config.bottleneck_dim, config.prototypes, config.train_gain)

    def forward(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        """Compute logits over prototypes, shape (..., D) -> (..., K).

        Args:
            x: Tokens.
            weight: Output of `last_layer.weight()`, to share it between calls in one step.
        """
        x = self.mlp(x)
        # Half precision needs a larger epsilon than float32's default.
        x = F.normalize(x, dim=-1, eps=1e-6 if x.dtype == torch.float16 else 1e-12)
        logits: Tensor = self.last_layer(x, weight)
        return logits
