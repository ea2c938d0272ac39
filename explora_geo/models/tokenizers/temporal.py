"""Time series of images of one place (SatMAE, Cong et al. 2022, section 3.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from explora_geo.models.position import sincos_1d
from explora_geo.models.tokenizers.base import RGB, Tokenizer


class TemporalTokenizer(Tokenizer):
    """Tokenizer with one slot per frame and a patch embedding shared by all frames.

    A token's position joins a spatial code with codes of the year, month and hour of its frame, so frames can
    come in any number and order (`num_frames` are expected), and RGB weights load unchanged. `slot_dim`, the
    width of the time code, is a multiple of 6: SatMAE's 384 for D of 768 and more, else three eighths of D;
    `decoder_slot_dim` is its counterpart in decoders (192 of 512).
    """

    kind = 'temporal'
    slot_step = 6  # sine and cosine of year, month and hour
    axes = 'B, T, {}, H, W'

    def __init__(
        self,
        embed_dim: int,
        img_size: int = 224,
        patch_size: int = 16,
        bands: Sequence[str] = RGB,
        dynamic_img_size: bool = False,
        num_frames: int = 3,
        slot_dim: int | None = None,
        decoder_slot_dim: int | None = None,
    ) -> None:
        """Initialize a TemporalTokenizer; see `Tokenizer` for sizes and bands."""
        super().__init__(img_size, patch_size, bands, dynamic_img_size)
        if num_frames < 1:
            raise ValueError(f'num_frames must be at least 1, got {num_frames}')
        self._set_slots(num_frames, embed_dim, slot_dim, decoder_slot_dim)
        self.proj = nn.Conv2d(len(bands), embed_dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed a series, shape (B, T, C, H, W), into tokens (B, T, L, D), and return the patch grid too."""
        self._check(image)
        tokens = rearrange(self.proj(image.flatten(0, 1)), '(b t) d h w -> b t (h w) d', b=len(image))
        return tokens, self.grid(image)

    @staticmethod
    def slot_width(dim: int) -> int:
        """Return 384 as in SatMAE, or three eighths of the width of smaller models."""
        return 384 if dim >= 768 else max(12, 3 * dim // 8 // 12 * 12)

    def slot_codes(self, timestamps: Tensor | None) -> Tensor:
        """Return zeros for the class token, then a time code per frame, shape (B, 1 + T, `slot_dim`)."""
        return _time_codes(self.slot_dim, timestamps)

    def decoder_slot_codes(self, dim: int, timestamps: Tensor | None) -> Tensor:
        """Return the same for a decoder of width `dim`."""
        return _time_codes(self._widths.get('decoder_slot_dim', self.slot_width(dim)), timestamps)

    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of each patch, (B, T, C, H, W) -> (B, T, L, C·P·P)."""
        self._check(image)
        size = self.patch_size
        return rearrange(image, 'b t c (h p) (w q) -> b t (h w) (c p q)', p=size, q=size)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Reassemble the frames from patches, (B, T, L, C·P·P) -> (B, T, C, H, W)."""
        size = self.patch_size
        return rearrange(patches, 'b t (h w) (c p q) -> b t c (h p) (w q)', h=grid[0], p=size, q=size)

    @property
    def options(self) -> dict[str, Any]:
        """Number of frames and the given widths."""
        return {'num_frames': self.num_slots, **self._widths}


def _time_codes(dim: int, timestamps: Tensor | None) -> Tensor:
    if timestamps is None or timestamps.ndim != 3 or timestamps.shape[-1] != 3:
        shape = None if timestamps is None else tuple(timestamps.shape)
        raise ValueError(
            'the temporal tokenizer needs timestamps of shape (B, T, 3) (years since 2002, months since '
            f'January, hours), got {shape}'
        )
    codes = sincos_1d(dim // 3, timestamps).flatten(2)  # (B,T,3,·) -> (B,T,dim), year first
    return torch.cat([torch.zeros_like(codes[:, :1]), codes], dim=1)
