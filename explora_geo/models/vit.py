"""The one vision transformer: a tokenizer, a class token and timm blocks."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from lightly.models.utils import get_at_index
from timm.layers.mlp import SwiGLUPacked
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from explora_geo.models.normalization import Normalization
from explora_geo.models.position import sincos_2d
from explora_geo.models.tokenizers import Tokenizer

# timm's models, MAE's and DINOv2's all use this; timm's `Block` alone has had other defaults.
LayerNorm: Any = partial(nn.LayerNorm, eps=1e-6)

#: Tokens without position, shape (B, S, L, D), and the patch grid: output of a tokenizer.
Embedded = tuple[Tensor, tuple[int, int]]


class Features(NamedTuple):
    """Output of a ViT after its final norm.

    Attributes:
        cls: Class token, shape (B, D).
        patches: Patch tokens, shape (B, S, L, D); with `keep`, the kept ones, shape (B, K, D).
    """

    cls: Tensor
    patches: Tensor


class ViT(nn.Module):
    """Vision transformer whose input side is a tokenizer.

    With a `PatchTokenizer` the state dict has exactly timm's keys (`patch_embed.proj`, `cls_token`,
    `pos_embed`, `blocks.i`, `norm`), so weights travel both ways without conversion.

    Attributes:
        name: Name that `create_vit` built it by; empty otherwise.
        normalization: How the images that the weights were adapted on were normalized, if they say so.
        stored_position: Positions as the file of the weights holds them, before they are resampled to this
            grid; empty where the model computes its own, None where no file was read.
        base: Name of the weights that were loaded; empty for random ones.
        licence: Licence that those weights state.
    """

    name: str = ''
    base: str = ''
    licence: str = ''
    normalization: Normalization | None = None
    stored_position: Tensor | None = None

    def __init__(
        self,
        tokenizer: Tokenizer,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4,
        init_values: float | None = None,
        drop_path_rate: float = 0.0,
        uniform_drop_path: bool = False,
        learned_position: bool = True,
        mask_token: bool = False,
        final_norm: bool = True,
        swiglu: bool = False,
    ) -> None:
        """Initialize a ViT with random weights.

        Args:
            tokenizer: Input side; registered as `patch_embed`, timm's name.
            embed_dim: Width D.
            depth: Number of blocks.
            num_heads: Attention heads per block.
            mlp_ratio: Hidden width of the MLP over D.
            init_values: Start of LayerScale (DINOv2), or None for no LayerScale.
            drop_path_rate: Stochastic depth of the last block.
            uniform_drop_path: Use that rate in every block (DINOv2) instead of a linear rise (timm).
            learned_position: Train `pos_embed`; False starts from fixed sine-cosine codes as MAE. Codes
                beside those of slots are always fixed, as SatMAE's.
            mask_token: Hold a token that replaces masked patches (iBOT); adds the key `mask_token`.
            final_norm: Norm after the last block; models tuned on average-pooled patches have none.
            swiglu: Gated MLPs (DINOv2's ViT-g); `mlp_ratio` counts both halves.
        """
        super().__init__()
        self.patch_embed = tokenizer
        self.embed_dim = embed_dim
        self.grad_checkpointing = False
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim))
        self.mask_token = nn.Parameter(torch.zeros(1, embed_dim)) if mask_token else None
        learned_position = learned_position and not tokenizer.slot_dim
        position = torch.zeros(1, 1 + tokenizer.num_patches, embed_dim - tokenizer.slot_dim)
        self.pos_embed: Tensor
        if learned_position:
            self.pos_embed = nn.Parameter(position)
        else:  # what is fixed is a buffer, so that nothing can train it
            self.register_buffer('pos_embed', position)
        gated: dict[str, Any] = {'mlp_layer': SwiGLUPacked, 'act_layer': nn.SiLU} if swiglu else {}
        rates = torch.linspace(0, drop_path_rate, depth, device='cpu').tolist()
        self.blocks = nn.ModuleList(
            Block(
                embed_dim,
                num_heads,
                mlp_ratio=mlp_ratio,
                qkv_bias=True,
                init_values=init_values,
                drop_path=drop_path_rate if uniform_drop_path else rates[i],
                norm_layer=LayerNorm,
                **gated,
            )
            for i in range(depth)
        )
        self.norm = LayerNorm(embed_dim) if final_norm else nn.Identity()
        if not self.cls_token.is_meta:  # models built only to be counted hold no numbers
            self._init_weights(learned_position)

    def _init_weights(self, learned_position: bool) -> None:
        """Xavier for matrices, normal 0.02 for tokens (MAE's scheme)."""
        init_transformer(self)
        nn.init.normal_(self.cls_token, std=0.02)
        with torch.no_grad():
            if learned_position:
                nn.init.trunc_normal_(self.pos_embed, std=0.02)
            else:
                grid = self.patch_embed.grid_size
                self.pos_embed[:, 1:] = sincos_2d(self.pos_embed.shape[-1], grid)

    @property
    def learned_position(self) -> bool:
        """Whether positions are parameters; fixed ones are a buffer."""
        return isinstance(self.pos_embed, nn.Parameter)

    @property
    def num_parameters(self) -> int:
        """Parameters as papers count them, fixed positions among them."""
        fixed = 0 if self.learned_position else self.pos_embed.numel()
        return fixed + sum(p.numel() for p in self.parameters())

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
    ) -> tuple[Tensor, tuple[int, int]]:
        """Tokens before the first block, in the order tokens → mask → position → keep → class token.

        Returns:
            Tokens, shape (B, 1 + N, D) or (B, 1 + K, D) with `keep`, and (slots, patches per slot).
        """
        tokens, grid = self.patch_embed(image) if embedded is None else embedded
        if token_mask is not None:
            if self.mask_token is None:
                raise ValueError('token_mask needs a ViT built with mask_token=True')
            mask = token_mask.reshape(*tokens.shape[:3], 1)
            tokens = torch.where(mask, self.mask_token.to(tokens.dtype), tokens)
        cls_position, position = self.patch_embed.position(self.pos_embed, grid, timestamps)
        if position.shape[1] not in (1, tokens.shape[1]):
            raise ValueError(f'got {position.shape[1]} timestamps for {tokens.shape[1]} frames of each image')
        tokens = tokens + position
        slots = (tokens.shape[1], tokens.shape[2])
        x = tokens.flatten(1, 2)  # (B,S,L,D) -> (B,N,D)
        if keep is not None:
            x = get_at_index(x, keep)
        cls = (self.cls_token + cls_position).expand(x.shape[0], -1, -1)
        return torch.cat([cls, x], dim=1), slots

    def forward(
        self,
        image: Tensor,
        *,
        timestamps: Tensor | None = None,
        token_mask: Tensor | None = None,
        keep: Tensor | None = None,
        embedded: Embedded | None = None,
    ) -> Features:
        """Features of the last block after the final norm.

        Args:
            image: Normalized image, shape (B, C, H, W), or as the tokenizer says.
            timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).
            token_mask: True where the mask token replaces a patch (iBOT), shape (B, S, L) or (B, S·L).
            keep: Indices into the N = S·L tokens to run, the others are dropped (MAE), shape (B, K).
            embedded: What `patch_embed(image)` gave, where it was asked already.

        Returns:
            Class token and patch tokens.
        """
        x, slots = self.embed(image, timestamps, token_mask, keep, embedded)
        for block in self.blocks:
            x = self._run(block, x)
        return self._features(x, None if keep is not None else slots)

    def intermediate(
        self, image: Tensor, blocks: Sequence[int], *, timestamps: Tensor | None = None
    ) -> list[Features]:
        """Features after the named blocks, each through the final norm (DINOv2's probing features).

        Args:
            image: Normalized image, shape (B, C, H, W), or as the tokenizer says.
            blocks: Block indices counted from 0; negative ones from the end.
            timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).

        Returns:
            One `Features` per block, in the order asked for.
        """
        wanted = [range(self.depth)[i] for i in blocks]
        x, slots = self.embed(image, timestamps)
        found = {}
        for i, block in enumerate(self.blocks[: max(wanted) + 1]):
            x = self._run(block, x)
            if i in wanted:
                found[i] = self._features(x, slots)
        return [found[i] for i in wanted]

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def _features(self, x: Tensor, slots: tuple[int, int] | None) -> Features:
        x = self.norm(x)
        patches = x[:, 1:]
        return Features(x[:, 0], patches.unflatten(1, slots) if slots else patches)


def init_transformer(module: nn.Module) -> None:
    """Initialise matrices as MAE does: Xavier-uniform, convolutions as the matrices they are."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(layer.weight.view(layer.weight.shape[0], -1))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
