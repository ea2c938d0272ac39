"""Lightweight decoder for masked autoencoders."""

import torch
from torch import Tensor, nn

from explora_geo.models.blocks import TrunkConfig, build_block, run_block
from explora_geo.models.tokenizers import Tokenizer
from explora_geo.models.vit import init_transformer


class MAEDecoder(nn.Module):
    """Decoder that predicts the pixels of all patches from the kept tokens (He et al. 2022, section 3).

    Its attributes `blocks` and `norm` are named as in a ViT, so `explora()` adapts it the same way.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        in_dim: int,
        embed_dim: int = 512,
        depth: int = 8,
        num_heads: int = 16,
        mlp_ratio: float = 4,
    ) -> None:
        """Initialize an MAEDecoder with random weights.

        The encoder's tokenizer provides positions and the target size; `in_dim` is the encoder's width.
        """
        super().__init__()
        # A tuple keeps the tokenizer, which belongs to the encoder, from being registered twice.
        self._tokenizer = (tokenizer,)
        self.grad_checkpointing = False
        self.embed = nn.Linear(in_dim, embed_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        trunk = TrunkConfig(mlp_ratio=mlp_ratio)
        self.blocks = nn.ModuleList(build_block(embed_dim, num_heads, trunk) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim, eps=trunk.norm_eps)
        self.pred = tokenizer.build_prediction(embed_dim)
        # Sine-cosine codes are computed; rounded ones in a checkpoint take precedence.
        self.pos_embed: Tensor | None
        self.slot_embed: Tensor | None
        self.register_buffer('pos_embed', None, persistent=False)
        self.register_buffer('slot_embed', None, persistent=False)
        if not self.mask_token.is_meta:
            init_transformer(self)
            nn.init.normal_(self.mask_token, std=0.02)

    def forward(
        self,
        cls: Tensor,
        kept: Tensor,
        keep: Tensor,
        grid: tuple[int, int],
        slots: int,
        timestamps: Tensor | None = None,
    ) -> Tensor:
        """Predict all patches in the order of the tokenizer's `patchify`, shape (B, S, L, ·).

        Args:
            cls: Class token of the encoder, shape (B, D).
            kept: Kept tokens of the encoder, shape (B, K, D).
            keep: Their indices among the N = S·L tokens, shape (B, K).
            grid: Patch grid (height, width), L = height · width.
            slots: Slots S.
            timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).
        """
        patches = grid[0] * grid[1]
        x = self.embed(torch.cat([cls.unsqueeze(1), kept], dim=1))
        tokens = self.mask_token.to(x.dtype).repeat(len(x), slots * patches, 1)
        tokens = tokens.scatter(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]), x[:, 1:])
        cls_position, position = self._tokenizer[0].decoder_position(
            x.shape[-1], grid, timestamps, self.pos_embed, self.slot_embed, x.device
        )
        position = position.to(x).expand(-1, slots, -1, -1).flatten(1, 2)  # (·,S,L,D) -> (·,N,D)
        x = torch.cat([x[:, :1] + cls_position.to(x), tokens + position], dim=1)
        for block in self.blocks:
            x = run_block(block, x, recompute=self.grad_checkpointing)
        tokens = self.norm(x)[:, 1:].unflatten(1, (slots, patches))
        return self._tokenizer[0].predict(self.pred, tokens)
