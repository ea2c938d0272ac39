"""Vision transformer made of a tokenizer, class and register tokens, and timm blocks."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightly.models.utils import get_at_index
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo.models.blocks import TrunkConfig, build_block, run_block
from explora_geo.models.normalization import Normalization
from explora_geo.models.position import RotaryPosition, sincos_2d
from explora_geo.models.tokenizers import Tokenizer

#: Output of a tokenizer: tokens without position, shape (B, S, L, D), and the patch grid.
Embedded = tuple[Tensor, tuple[int, int]]


class Begun(NamedTuple):
    """State of a forward pass after its first blocks; see `ViT.begin`."""

    x: Tensor  # tokens, shape (B, 1 + R + N, D)
    slots: tuple[int, int] | None  # slots and patches per slot; None where patches were dropped
    rope: Tensor | None  # rotations of the tokens if positions are rotary
    blocks: int  # number of blocks already run


class Features(NamedTuple):
    """Output of a ViT after its final norm."""

    cls: Tensor  # class token, shape (B, D)
    patches: Tensor  # patch tokens, shape (B, S, L, D); with `keep`, the kept ones, shape (B, K, D)
    registers: Tensor | None = None  # register tokens, shape (B, R, D), or None


class ViT(nn.Module):
    """Vision transformer with a tokenizer as its input stage.

    With a `PatchTokenizer` the state dict has timm's keys (`patch_embed.proj`, `cls_token`, `reg_token`,
    `pos_embed`, `blocks.i`, `norm`); DINOv3's models have those of timm's `Eva`. Positions cover the class
    token but not registers. `rope` holds rotary positions, which replace the table, or is None.
    """

    name: str = ''  # passed to `create_vit`
    base: str = ''  # name of the weights that were loaded
    license: str = ''  # stated by those weights
    adaptation: str = ''  # notation of the adapter applied to them
    normalization: Normalization | None = None  # of the images they were adapted on, if stated
    # As in the weights file; empty where the model computes its own, None where no file was read
    stored_position: Tensor | None = None
    pos_embed: Tensor | None  # table, shape (1, 1 + L, D - slot_dim); None with `rope`

    def __init__(
        self,
        tokenizer: Tokenizer,
        embed_dim: int,
        depth: int,
        num_heads: int,
        trunk: TrunkConfig | None = None,
        drop_path_rate: float = 0.0,
        uniform_drop_path: bool = False,
        learned_position: bool = True,
        mask_token: bool = False,
        final_norm: bool = True,
    ) -> None:
        """Initialize a ViT with random weights.

        Args:
            tokenizer: Input stage; registered as `patch_embed`, timm's name.
            embed_dim: Width D.
            depth: Number of blocks.
            num_heads: Attention heads per block.
            trunk: Block settings; MAE's if None.
            drop_path_rate: Stochastic-depth rate of the last block.
            uniform_drop_path: Use that rate in every block (DINOv2) instead of a linear rise (timm).
            learned_position: Train `pos_embed`; False uses fixed sine-cosine codes, as MAE does. Positions
                combined with slot codes are always fixed, as in SatMAE.
            mask_token: Add a token that replaces masked patches (iBOT), with the key `mask_token`.
            final_norm: Norm after the last block; models fine-tuned on average-pooled patches have none.

        Raises:
            ValueError: If slot codes leave no width for positions.
        """
        super().__init__()
        trunk = trunk or TrunkConfig()
        self.patch_embed = tokenizer
        self.embed_dim = embed_dim
        self.grad_checkpointing = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.reg_token = nn.Parameter(torch.zeros(1, trunk.registers, embed_dim)) if trunk.registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim)) if mask_token else None
        self.rope = RotaryPosition(embed_dim // num_heads, trunk.rotary) if trunk.rotary else None
        learned_position = learned_position and not tokenizer.slot_dim and self.rope is None
        if self.rope is None and tokenizer.slot_dim >= embed_dim:
            raise ValueError(f'slot_dim must be below the width {embed_dim}, got {tokenizer.slot_dim}')
        position = torch.zeros(1, 1 + tokenizer.num_patches, embed_dim - tokenizer.slot_dim)
        if learned_position:
            self.pos_embed = nn.Parameter(position)
        else:  # fixed positions are a buffer so that nothing trains them
            self.register_buffer('pos_embed', None if self.rope else position)
        rates = torch.linspace(0, drop_path_rate, depth, device='cpu').tolist()
        self.blocks = nn.ModuleList(
            build_block(embed_dim, num_heads, trunk, drop_path_rate if uniform_drop_path else rate)
            for rate in rates
        )
        self.norm = nn.LayerNorm(embed_dim, eps=trunk.norm_eps) if final_norm else nn.Identity()
        if not self.cls_token.is_meta:  # meta models, built for counting, hold no values
            self._init_weights()

    def _init_weights(self) -> None:
        """Initialize matrices with Xavier and tokens with normal 0.02 (MAE's scheme)."""
        init_transformer(self)
        nn.init.normal_(self.cls_token, std=0.02)
        if self.reg_token is not None:
            nn.init.normal_(self.reg_token, std=0.02)
        with torch.no_grad():
            if self.learned_position:
                nn.init.trunc_normal_(self.pos_embed, std=0.02)  # type: ignore[arg-type]
            elif self.pos_embed is not None:
                self.pos_embed[:, 1:] = sincos_2d(self.pos_embed.shape[-1], self.patch_embed.grid_size)

    @property
    def learned_position(self) -> bool:
        """Whether positions are parameters rather than a fixed buffer."""
        return isinstance(self.pos_embed, nn.Parameter)

    @property
    def num_parameters(self) -> int:
        """Number of parameters as papers count them, including fixed positions."""
        fixed = 0 if self.learned_position or self.pos_embed is None else self.pos_embed.numel()
        return fixed + sum(p.numel() for p in self.parameters())

    @property
    def num_prefix_tokens(self) -> int:
        """Number of tokens before the patches: the class token and registers."""
        return 1 if self.reg_token is None else 1 + self.reg_token.shape[1]

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    def embed(
        self,
        image: Tensor,
        timestamps: Tensor | None = None,
        token_mask: Tensor | None = None,
        keep: Tensor | None = None,
        embedded: Embedded | None = None,
    ) -> tuple[Tensor, tuple[int, int], Tensor | None]:
        """Build the input of the first block, in the order tokens → mask → position → keep → prefix.

        Returns:
            Tokens, shape (B, 1 + R + N, D) or (B, 1 + R + K, D) with `keep`, (slots, patches per slot), and
            the rotations of the tokens if positions are rotary; see `rotate`.
        """
        tokens, grid = self.patch_embed(image) if embedded is None else embedded
        if token_mask is not None:
            if self.mask_token is None:
                raise ValueError('token_mask needs a ViT built with mask_token=True')
            mask = token_mask.reshape(*tokens.shape[:3], 1)
            tokens = torch.where(mask, self.mask_token.to(tokens.dtype), tokens)
        cls_position, position = self.patch_embed.position(self.pos_embed, grid, timestamps)
        if position.shape[1] not in (1, tokens.shape[1]):
            raise ValueError(f'got {position.shape[1]} timestamps for {tokens.shape[1]} frames per image')
        if self.rope is not None:  # slot codes alone, padded to full width
            fill = (0, self.embed_dim - position.shape[-1])
            cls_position, position = (F.pad(x.to(tokens.device), fill) for x in (cls_position, position))
        tokens = tokens + position
        slots = (tokens.shape[1], tokens.shape[2])
        x = tokens.flatten(1, 2)  # (B,S,L,D) -> (B,N,D)
        rope = None if self.rope is None else self._rotations(grid, slots[0], keep, x.device)
        if keep is not None:
            x = get_at_index(x, keep)
        prefix = [(self.cls_token + cls_position).expand(x.shape[0], -1, -1)]
        if self.reg_token is not None:
            prefix.append(self.reg_token.expand(x.shape[0], -1, -1))
        return torch.cat([*prefix, x], dim=1), slots, rope

    def _rotations(
        self, grid: tuple[int, int], slots: int, keep: Tensor | None, device: torch.device
    ) -> Tensor:
        """Return the rotations of all tokens, shape (2, N, ·) or (2, B, 1, K, ·), prefix unrotated."""
        assert self.rope is not None
        turns = self.rope(grid, device).repeat(1, slots, 1)  # every slot has the same places
        if keep is not None:
            turns = turns[:, keep].unsqueeze(2)
        sin, cos = F.pad(turns, (0, 0, self.num_prefix_tokens, 0))
        cos[..., : self.num_prefix_tokens, :] = 1
        return torch.stack([sin, cos])

    def forward(
        self,
        image: Tensor,
        *,
        timestamps: Tensor | None = None,
        token_mask: Tensor | None = None,
        keep: Tensor | None = None,
        embedded: Embedded | None = None,
        begun: Begun | None = None,
    ) -> Features:
        """Compute the features of the last block after the final norm.

        Args:
            image: Normalized image, shape (B, C, H, W), or as the tokenizer expects.
            timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).
            token_mask: True where the mask token replaces a patch (iBOT), shape (B, S, L) or (B, S·L).
            keep: Indices of the tokens to keep out of N = S·L; the others are dropped (MAE), shape (B, K).
            embedded: Output of `patch_embed(image)`, if already computed.
            begun: Output of `begin` for the image, to continue from.
        """
        if begun is None:
            options: dict[str, Any] = {'token_mask': token_mask, 'keep': keep, 'embedded': embedded}
            begun = self.begin(image, 0, timestamps=timestamps, **options)
        x = begun.x
        for block in self.blocks[begun.blocks :]:
            x = run_block(block, x, begun.rope, self.grad_checkpointing)
        return self._features(x, begun.slots)

    def begin(self, image: Tensor, blocks: int, **options: Any) -> Begun:
        """Run only the first blocks, with the options of `forward`."""
        x, slots, rope = self.embed(image, **options)
        for block in self.blocks[:blocks]:
            x = run_block(block, x, rope, self.grad_checkpointing)
        return Begun(x, None if options.get('keep') is not None else slots, rope, blocks)

    def intermediate(
        self, image: Tensor, blocks: Sequence[int], *, timestamps: Tensor | None = None
    ) -> list[Features]:
        """Compute features after the given blocks, in order and through the final norm (DINOv2's probing).

        Args:
            image: Normalized image, shape (B, C, H, W), or as the tokenizer expects.
            blocks: Block indices from 0; negative ones count from the end.
            timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).
        """
        wanted = [range(self.depth)[i] for i in blocks]
        x, slots, rope = self.embed(image, timestamps)
        found = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = run_block(block, x, rope, self.grad_checkpointing)
            if i in wanted:
                found[i] = self._features(x, slots)
        return [found[i] for i in wanted]

    def _features(self, x: Tensor, slots: tuple[int, int] | None) -> Features:
        x = self.norm(x)
        prefix, patches = x[:, : self.num_prefix_tokens], x[:, self.num_prefix_tokens :]
        patches = patches.unflatten(1, slots) if slots else patches
        return Features(x[:, 0], patches, None if self.reg_token is None else prefix[:, 1:])


def init_transformer(module: nn.Module) -> None:
    """Initialize linear layers and, as matrices, convolutions with Xavier-uniform, as MAE does."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
