"""Groups of spectral bands as slots (SatMAE, Cong et al. 2022, section 3.3)."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo.models.position import sincos_1d
from explora_geo.models.tokenizers.base import Tokenizer

#: Sentinel-2 groups of SatMAE and the paper: visible and near infrared, red edge, short-wave infrared.
CHANNEL_GROUPS = (('B02', 'B03', 'B04', 'B08'), ('B05', 'B06', 'B07', 'B8A'), ('B11', 'B12'))
#: Their bands in SatMAE's image order, without B01, B09 and B10.
SENTINEL2 = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')


class GroupChannelTokenizer(Tokenizer):
    """Tokenizer with one slot per group of bands, each with its own patch embedding.

    A token's position joins a spatial code with a code of its group. `channel_groups` list every band exactly
    once by name, so the bands of an image may come in any order. `slot_dim`, the width of the group code, is
    even: SatMAE's 256 for D of 768 and more, else a quarter of D; `decoder_slot_dim` is its counterpart in
    decoders (128 of 512).

    With `satmae_band_pairing`, predictions of a decoder are paired with bands as in SatMAE's code: the k-th
    prediction, counted across groups, stands for the k-th band of the *image*, so some predict a band of
    another group. SatMAE's decoders need it.
    """

    kind = 'group-channel'
    slot_step = 2
    fresh = ('patch_embed',)

    def __init__(
        self,
        embed_dim: int,
        img_size: int = 96,
        patch_size: int = 8,
        bands: Sequence[str] = SENTINEL2,
        dynamic_img_size: bool = False,
        channel_groups: Sequence[Sequence[str]] = CHANNEL_GROUPS,
        slot_dim: int | None = None,
        decoder_slot_dim: int | None = None,
        satmae_band_pairing: bool = False,
    ) -> None:
        """Initialize a GroupChannelTokenizer; see `Tokenizer` for sizes and bands."""
        super().__init__(img_size, patch_size, bands, dynamic_img_size)
        self.channel_groups = tuple(tuple(group) for group in channel_groups)
        grouped = [band for group in self.channel_groups for band in group]
        if sorted(grouped) != sorted(self.bands) or not all(self.channel_groups):
            shown = ' '.join(f'({", ".join(group)})' for group in self.channel_groups)
            raise ValueError(
                f'channel_groups must contain every band exactly once, got groups {shown} and bands '
                f'{", ".join(self.bands)}'
            )
        self.indices = tuple(tuple(self.bands.index(b) for b in group) for group in self.channel_groups)
        self._set_slots(len(self.channel_groups), embed_dim, slot_dim, decoder_slot_dim)
        self.satmae_band_pairing = satmae_band_pairing
        self.proj = nn.ModuleList(
            nn.Conv2d(len(group), embed_dim, patch_size, stride=patch_size) for group in self.channel_groups
        )
        # A buffer: fixed in pre-training, but some fine-tuned checkpoints bring their own.
        codes = sincos_1d(self.slot_dim, torch.arange(self.num_slots, device='cpu'))
        self.channel_embed: Tensor
        self.register_buffer('channel_embed', codes[None].to(next(self.parameters()).device))

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed an image, shape (B, C, H, W), into tokens (B, G, L, D), and return the patch grid too."""
        self._check(image)
        tokens = torch.stack(
            [proj(image[:, list(bands)]) for proj, bands in zip(self.proj, self.indices, strict=True)], dim=1
        )
        return rearrange(tokens, 'b g d h w -> b g (h w) d'), self.grid(image)

    @staticmethod
    def slot_width(dim: int) -> int:
        """Return 256 as in SatMAE, or a quarter of the width of smaller models."""
        return 256 if dim >= 768 else max(4, dim // 16 * 4)

    def slot_codes(self, timestamps: Tensor | None) -> Tensor:
        """Return zeros for the class token, then a code per group, shape (1, 1 + G, `slot_dim`)."""
        return torch.cat([torch.zeros_like(self.channel_embed[:, :1]), self.channel_embed], dim=1)

    def decoder_slot_codes(self, dim: int, timestamps: Tensor | None) -> Tensor:
        """Return the codes for a decoder of width `dim`, which places the class token after the groups."""
        width = self._widths.get('decoder_slot_dim', self.slot_width(dim))
        places = torch.arange(-1, self.num_slots)
        return sincos_1d(width, torch.where(places < 0, self.num_slots, places))[None]

    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of each patch, (B, C, H, W) -> (B, G, L, `target_dim`), zero-padded."""
        self._check(image)
        size = self.patch_size
        patches = rearrange(image, 'b c (h p) (w q) -> b (h w) c (p q)', p=size, q=size)
        return self._stack([patches[:, :, list(bands)].flatten(2) for bands in self.indices])

    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Reassemble the image from patches, (B, G, L, `target_dim`) -> (B, C, H, W)."""
        size = self.patch_size
        by_group = [patches[:, i, :, :width] for i, width in enumerate(self.target_sizes)]
        joined = rearrange(
            torch.cat(by_group, dim=-1), 'b (h w) (c p q) -> b c (h p) (w q)', h=grid[0], p=size, q=size
        )
        order = [i for bands in self.indices for i in bands]
        return joined[:, [order.index(i) for i in range(len(order))]]

    def build_prediction(self, dim: int) -> nn.Module:
        """Build one linear layer per group, with SatMAE's keys `0.weight`, `1.weight`, ..."""
        return nn.ModuleList(nn.Linear(dim, width) for width in self.target_sizes)

    def predict(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        """Predict patches with the layer of each group, (B, G, L, dim) -> (B, G, L, `target_dim`)."""
        parts = [linear(tokens[:, i]) for i, linear in enumerate(layer.children())]
        if self.satmae_band_pairing:
            bands = torch.cat(parts, dim=-1).unflatten(-1, (len(self.bands), -1))
            parts = [bands[:, :, list(chosen)].flatten(2) for chosen in self.indices]
        return self._stack(parts)

    def target_statistics(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance over all bands of a patch, as in SatMAE, shape (B, 1, L, 1) each."""
        parts = [target[:, i, :, :width] for i, width in enumerate(self.target_sizes)]
        whole = torch.cat(parts, dim=-1)
        var, mean = torch.var_mean(whole, dim=-1, keepdim=True)
        return mean[:, None], var[:, None]

    @property
    def target_sizes(self) -> tuple[int, ...]:
        """Values per patch in each group."""
        return tuple(len(group) * self.patch_size**2 for group in self.channel_groups)

    @property
    def options(self) -> dict[str, Any]:
        """Groups and non-default arguments."""
        groups = [list(group) for group in self.channel_groups]
        pairing = {'satmae_band_pairing': True} if self.satmae_band_pairing else {}
        return {'channel_groups': groups, **self._widths, **pairing}

    def _stack(self, parts: list[Tensor]) -> Tensor:
        """Pad the groups' patches, each (B, L, ·), to one width and stack them, (B, G, L, ·)."""
        return torch.stack([F.pad(part, (0, self.target_dim - part.shape[-1])) for part in parts], dim=1)
