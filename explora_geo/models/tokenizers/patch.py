"""The ordinary ViT patch embedding, for any band count."""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from explora_geo.models.tokenizers.base import RGB, Tokenizer


class PatchTokenizer(Tokenizer):
    """One slot of patches over all bands.

    The convolution is named `proj` as in timm, MAE and DINOv2, so that their weights load as they are.
    """

    kind = 'patch'

    def __init__(
        self,
        embed_dim: int,
        img_size: int = 224,
        patch_size: int = 16,
        bands: Sequence[str] = RGB,
        dynamic_img_size: bool = False,
    ) -> None:
        """Initialize a PatchTokenizer; arguments are those of `Tokenizer`."""
        super().__init__(img_size, patch_size, bands, dynamic_img_size)
        self.proj = nn.Conv2d(len(bands), embed_dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed an image, shape (B, C, H, W); see `Tokenizer.forward`."""
        self._check(image)
        return rearrange(self.proj(image), 'b d h w -> b 1 (h w) d'), self.grid(image)

    def patchify(self, image: Tensor) -> Tensor:
        """Pixels of each patch, (B, C, H, W) -> (B, 1, L, C·P·P)."""
        self._check(image)
        size = self.patch_size
        return rearrange(image, 'b c (h p) (w q) -> b 1 (h w) (c p q)', p=size, q=size)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Image of the patches, (B, 1, L, C·P·P) -> (B, C, H, W)."""
        size = self.patch_size
        return rearrange(patches, 'b 1 (h w) (c p q) -> b c (h p) (w q)', h=grid[0], p=size, q=size)
