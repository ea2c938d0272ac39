"""Tokenizer interface for ViTs and decoders."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from explora_geo.bands import RGB as RGB
from explora_geo.models.position import resample_position, sincos_2d


class Tokenizer(nn.Module, ABC):
    """Base class of the input stage of a ViT.

    A token's position joins a spatial code with a code of its slot (channel group, frame). The ViT stores the
    spatial code, `pos_embed`, of width D - `slot_dim`; the tokenizer concatenates both. `grid_size` counts
    patches of `patch_size` pixels along height and width at the nominal image side `img_size`, pixels.
    """

    kind: str  # name in configurations
    num_slots: int = 1  # slots S of the tokens at the nominal input
    slot_dim: int = 0  # width of the slot code in the ViT; 0 without slots, which allows learned positions
    slot_step: int = 0  # slot-code widths are multiples of this
    fresh: tuple[str, ...] = ()  # parts that RGB weights cannot fill; they train if newly initialized
    axes = 'B, {}, H, W'

    def __init__(self, img_size: int, patch_size: int, bands: Sequence[str], dynamic_img_size: bool) -> None:
        """Check and store the settings that all tokenizers share.

        Args:
            img_size: Nominal image side, pixels, a multiple of `patch_size` (ValueError otherwise).
            patch_size: Patch side P, pixels.
            bands: Distinct band names in image order (ValueError otherwise).
            dynamic_img_size: Accept other image sizes and resample the positions to them.
        """
        super().__init__()
        if patch_size < 1 or img_size < patch_size or img_size % patch_size:
            raise ValueError(f'img_size must be a multiple of patch_size, got {img_size=}, {patch_size=}')
        if not bands or len(set(bands)) != len(bands):
            raise ValueError(f'bands must be distinct names, got {tuple(bands)}')
        self.bands = tuple(bands)
        self.img_size = img_size
        self.patch_size = patch_size
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.dynamic_img_size = dynamic_img_size
        self._widths: dict[str, int] = {}

    def _set_slots(self, count: int, embed_dim: int, slot_dim: int | None, decoder: int | None) -> None:
        """Set the number of slots and the widths of their codes; None means SatMAE's share of the width."""
        given = {'slot_dim': slot_dim, 'decoder_slot_dim': decoder}
        self._widths = {name: width for name, width in given.items() if width is not None}
        for name, width in self._widths.items():
            if width < 1 or width % self.slot_step:
                raise ValueError(f'{name} must be a positive multiple of {self.slot_step}, got {width}')
        self.num_slots = count
        self.slot_dim = self.slot_width(embed_dim) if slot_dim is None else slot_dim
        if self.slot_dim > embed_dim:
            raise ValueError(f'slot_dim must be at most the width {embed_dim}, got {self.slot_dim}')

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed a normalized image, shape (B, C, H, W), or a series, shape (B, T, C, H, W).

        Returns:
            Tokens without position, shape (B, S, L, D), and the patch grid (height, width).

        Raises:
            ValueError: If the image does not fit the bands, the patch size or the nominal size.
        """

    @abstractmethod
    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of each patch in (c, p, q) order: the MAE target, shape (B, S, L, `target_dim`).

        Slots with fewer bands are zero-padded.
        """

    @abstractmethod
    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Invert `patchify`."""

    def build_prediction(self, dim: int) -> nn.Module:
        """Build the last layer of an MAE decoder of width `dim`, which `predict` runs."""
        return nn.Linear(dim, self.target_dim)

    def predict(self, layer: nn.Module, tokens: Tensor) -> Tensor:
        """Predict patches with the last layer, (B, S, L, dim) -> (B, S, L, `target_dim`)."""
        return layer(tokens)

    @property
    def target_sizes(self) -> tuple[int, ...]:
        """Values per patch in each slot, or a single number for all slots."""
        return (len(self.bands) * self.patch_size**2,)

    @property
    def target_dim(self) -> int:
        """Values per patch in the largest slot."""
        return max(self.target_sizes)

    @property
    def options(self) -> dict[str, Any]:
        """Constructor arguments beyond sizes and bands, as JSON-ready values."""
        return dict(self._widths)

    @staticmethod
    def slot_width(dim: int) -> int:
        """Return the default width of slot codes for tokens of width `dim`."""
        return 0

    def slot_codes(self, timestamps: Tensor | None) -> Tensor:
        """Return the slot codes for the ViT, class token first, shape (1 or B, 1 + S, `slot_dim`)."""
        return torch.zeros(1, 1 + self.num_slots, 0)

    def decoder_slot_codes(self, dim: int, timestamps: Tensor | None) -> Tensor:
        """Return the slot codes for a decoder of width `dim`, class token first, shape (1 or B, 1 + S, ·)."""
        return self.slot_codes(timestamps)

    def position(
        self, stored: Tensor | None, grid: tuple[int, int], timestamps: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the ViT's position codes for the class token and the patches.

        Args:
            stored: The ViT's spatial codes, class token first, shape (1, 1 + L, D - `slot_dim`), or None with
                rotary positions; the returned codes are then `slot_dim` wide.
            grid: Patch grid of this image.
            timestamps: Acquisition times for tokenizers that use them, shape (B, T, 3).

        Returns:
            Class-token codes, shape (1 or B, 1, D), and patch codes, broadcastable to (B, S, L, D).
        """
        codes = self.slot_codes(timestamps)
        if stored is None:
            return codes[:, :1], codes[:, 1:, None]
        return _join(stored[:, :1], resample_position(stored[:, 1:], self.grid_size, grid), codes)

    def decoder_position(
        self,
        dim: int,
        grid: tuple[int, int],
        timestamps: Tensor | None = None,
        pos_embed: Tensor | None = None,
        slot_embed: Tensor | None = None,
        device: torch.device | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return fixed position codes of width `dim` for decoders, in the form of `position`.

        Codes from a checkpoint, class token first, take precedence: `pos_embed` if its grid matches, and
        `slot_embed`, shape (1, 1 + S, ·). Pass the tokens' `device` to avoid a copy.
        """
        slots = self.decoder_slot_codes(dim, timestamps) if slot_embed is None else slot_embed
        width = dim - slots.shape[-1]
        if pos_embed is not None and grid == self.grid_size and pos_embed.shape[-1] == width:
            return _join(pos_embed[:, :1], pos_embed[:, 1:], slots)
        return _join(slots.new_zeros(1, 1, width), sincos_2d(width, grid, device)[None], slots)

    def target_statistics(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each target patch (`norm_pix_loss`), broadcastable to the target."""
        return target.mean(dim=-1, keepdim=True), target.var(dim=-1, keepdim=True)

    def grid(self, image: Tensor) -> tuple[int, int]:
        """Count the patches along height and width of an image, shape (..., H, W)."""
        return image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Number of patches L per slot at the nominal image size."""
        return self.grid_size[0] * self.grid_size[1]

    def _check(self, image: Tensor) -> None:
        """Raise ValueError if an image does not fit the bands, the patch size or the nominal size."""
        if image.ndim != self.axes.count(',') + 1 or image.shape[-3] != len(self.bands):
            raise ValueError(
                f'the model expects images of shape ({self.axes.format(len(self.bands))}) with bands '
                f'{", ".join(self.bands)}, got shape {tuple(image.shape)}'
            )
        height, width = image.shape[-2:]
        size = self.patch_size
        if height % size or width % size:
            raise ValueError(
                f'image sides must be multiples of the patch size {size}, got {height}x{width}: '
                'crop or resize the images'
            )
        if not self.dynamic_img_size and (height, width) != (self.img_size, self.img_size):
            raise ValueError(
                f'the model was built for {self.img_size}x{self.img_size} images, got {height}x{width}: '
                'set img_size, or dynamic_img_size=True to resample the positions'
            )


def _join(cls: Tensor, patches: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate spatial codes (1, 1, ·), (1, L, ·) with slot codes (b, 1 + S, ·)."""
    if not slots.shape[-1]:
        return cls, patches.unsqueeze(1)
    batch, count, length = slots.shape[0], slots.shape[1] - 1, patches.shape[1]
    slots = slots.to(patches.device)
    cls_code = torch.cat([cls.to(patches.device).expand(batch, -1, -1), slots[:, :1]], dim=-1)
    space = patches.unsqueeze(1).expand(batch, count, -1, -1)
    return cls_code, torch.cat([space, slots[:, 1:, None].expand(-1, -1, length, -1)], dim=-1)
