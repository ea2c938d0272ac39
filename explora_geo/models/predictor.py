"""A backbone and a head that predicts something of images or of their pixels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo.models.dense import DenseHead
from explora_geo.models.readout import Slots, Tokens, evenly_spaced, pool
from explora_geo.models.vit import Features, ViT


class Predictor(nn.Module):
    """What both kinds share: running some blocks of the backbone.

    A frozen backbone stays in evaluation mode, so that nothing random happens in it, and keeps no graph.
    """

    def __init__(self, backbone: ViT, blocks: Sequence[int]) -> None:
        """Initialize a Predictor whose head reads these blocks, in ascending order."""
        super().__init__()
        self.backbone = backbone
        self.blocks = tuple(blocks)
        self.head: nn.Module

    @property
    def frozen(self) -> bool:
        """Whether nothing of the backbone trains."""
        return not any(p.requires_grad for p in self.backbone.parameters())

    def train(self, mode: bool = True) -> Any:
        """Switch to training mode, but for a frozen backbone."""
        super().train(mode)
        if self.frozen:
            self.backbone.eval()
        return self

    def features(self, image: Tensor, timestamps: Tensor | None = None) -> list[Features]:
        """Features of the blocks, last block last."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            return self.backbone.intermediate(image, self.blocks, timestamps=timestamps)


class ImagePredictor(Predictor):
    """One vector of scores per image."""

    def __init__(
        self, backbone: ViT, outputs: int, tokens: Tokens = 'avg', slots: Slots = 'mean', last_blocks: int = 1
    ) -> None:
        """Initialize an ImagePredictor.

        Args:
            backbone: The ViT.
            outputs: Scores per image.
            tokens: What is read: the class token, the mean patch, or both.
            slots: How slots are reduced before patches are averaged.
            last_blocks: Blocks whose class tokens are read; a ValueError if the backbone has fewer.
        """
        if not 1 <= last_blocks <= backbone.depth:
            raise ValueError(f'last_blocks must be 1 to {backbone.depth}, got {last_blocks}')
        super().__init__(backbone, range(backbone.depth - last_blocks, backbone.depth))
        self.tokens, self.slots = tokens, slots
        width = backbone.embed_dim
        average = width * (backbone.patch_embed.num_slots if slots == 'concat' else 1)
        inputs = width * last_blocks * ('cls' in tokens) + average * ('avg' in tokens)
        # MAE's probing head: scores of features of any scale, without parameters of its own.
        self.norm = nn.BatchNorm1d(inputs, affine=False, eps=1e-6)
        self.head = nn.Linear(inputs, outputs)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Scores, shape (B, outputs)."""
        pooled = pool(self.features(image, timestamps), self.tokens, self.slots)
        if self.training and len(pooled) == 1:  # one image has no spread: that of the batches before
            norm = self.norm
            scaled = F.batch_norm(pooled, norm.running_mean, norm.running_var, eps=norm.eps)
        else:
            scaled = self.norm(pooled)
        return self.head(scaled)


class DensePredictor(Predictor):
    """A score per pixel from four blocks, evenly spaced over the depth."""

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
        """Scores, shape (B, outputs, H, W)."""
        grid = self.backbone.patch_embed.grid(image)
        return self.head(self.features(image, timestamps), grid, tuple(image.shape[-2:]))
