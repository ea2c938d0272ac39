"""Predictors: a backbone with a head for images or pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo.models.dense import DenseHead
from explora_geo.models.readout import Slots, Tokens, evenly_spaced, pool
from explora_geo.models.vit import Features, ViT


class Predictor(nn.Module):
    """Base of both predictors, which runs the blocks of the backbone that the head reads.

    A frozen backbone stays in evaluation mode, so it is deterministic, and builds no autograd graph.
    """

    def __init__(self, backbone: ViT, blocks: Sequence[int]) -> None:
        """Initialize a Predictor whose head reads these blocks, given in ascending order."""
        super().__init__()
        self.backbone = backbone
        self.blocks = tuple(blocks)
        self.head: nn.Module

    @property
    def frozen(self) -> bool:
        """Whether the whole backbone is frozen."""
        return not any(p.requires_grad for p in self.backbone.parameters())

    def train(self, mode: bool = True) -> Any:
        """Set training mode, but keep a frozen backbone in evaluation mode."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, image: Tensor, timestamps: Tensor | None = None) -> list[Features]:
        """Compute the features of the blocks, last block last."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone.intermediate(image, self.blocks, timestamps=timestamps)


class ImagePredictor(Predictor):
    """Predictor of one score vector per image."""

    def __init__(
        self, backbone: ViT, outputs: int, tokens: Tokens = 'avg', slots: Slots = 'mean', last_blocks: int = 1
    ) -> None:
        """Initialize an ImagePredictor.

        Args:
            backbone: The ViT.
            outputs: Scores per image.
            tokens: Head input: the class token, the mean patch, or both.
            slots: Slot reduction before patches are averaged.
            last_blocks: Number of last blocks whose class tokens are read; ValueError if there are fewer.
        """
        if not 1 <= last_blocks <= backbone.depth:
            raise ValueError(f'last_blocks must be between 1 and {backbone.depth}, got {last_blocks}')
        super().__init__(backbone, range(backbone.depth - last_blocks, backbone.depth))
        self.tokens, self.slots = tokens, slots
        width = backbone.embed_dim
        average = width * (backbone.patch_embed.num_slots if slots == 'concat' else 1)
        inputs = width * last_blocks * ('cls' in tokens) + average * ('avg' in tokens)
        # MAE's probing head: a parameter-free batch norm handles features of any scale.
        self.norm = nn.BatchNorm1d(inputs, affine=False, eps=1e-6)
        self.head = nn.Linear(inputs, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Compute scores, shape (B, outputs)."""
        pooled = pool(self.features(image, timestamps), self.tokens, self.slots)
        if self.training and len(pooled) == 1:  # one image has no variance: use the running one
            norm = self.norm
            scaled = F.batch_norm(pooled, norm.running_mean, norm.running_var, eps=norm.eps)
        else:
            scaled = self.norm(pooled)
        return self.head(scaled)


class DensePredictor(Predictor):
    """Predictor of per-pixel scores from four blocks, evenly spaced over the depth."""

    def __init__(
        self, backbone: ViT, outputs: int, head: str = 'upernet', slots: Slots = 'mean', channels: int = 256
    ) -> None:
        """Initialize a DensePredictor; see `DenseHead`."""
        super().__init__(backbone, evenly_spaced(backbone.depth))
        tokenizer = backbone.patch_embed
        self.head = DenseHead(
            head, backbone.embed_dim, tokenizer.patch_size, outputs, tokenizer.num_slots, slots, channels
        )

    def forward(self, image: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Compute scores, shape (B, outputs, H, W)."""
        grid = self.backbone.patch_embed.grid(image)
        return self.head(self.features(image, timestamps), grid, tuple(image.shape[-2:]))
