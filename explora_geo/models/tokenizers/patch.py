"""Standard ViT patch embedding for any number of bands."""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from explora_geo.models.tokenizers.base import RGB, Tokenizer


class PatchTokenizer(Tokenizer):
    """Tokenizer with a single slot of patches over all bands.

    The convolution is named `proj` as in timm, MAE and DINOv2, so their weights load unchanged.
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
        """Initialize a PatchTokenizer; see `Tokenizer` for the arguments."""
        super().__init__(img_size, patch_size, bands, dynamic_img_size)
        self.proj = nn.Conv2d(len(bands), embed_dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed an image, shape (B, C, H, W); see `Tokenizer.forward`."""
        self._check(image)
        return rearrange(self.proj(image), 'b d h w -> b 1 (h w) d'), self.grid(image)

    def patchify(self, image: Tensor) -> Tensor:
        """Return the pixels of each patch, (B, C, H, W) -> (B, 1, L, C·P·P)."""
        self._check(image)
        size = self.patch_size
        return rearrange(image, 'b c (h p) (w q) -> b 1 (h w) (c p q)', p=size, q=size)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Reassemble the image from patches, (B, 1, L, C·P·P) -> (B, C, H, W)."""
        size = self.patch_size
        return rearrange(patches, 'b 1 (h w) (c p q) -> b c (h p) (w q)', h=grid[0], p=size, q=size)
