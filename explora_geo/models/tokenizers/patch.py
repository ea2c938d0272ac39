"""The ordinary ViT patch embedding, for any band count."""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from explora_geo.models.tokenizers.base import RGB, Tokenizer


class PatchTokenizer(Tokenizer):
    """One slot of patches over all bands: the ordinary ViT patch embedding, for any band count.

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
        """Initialize a PatchTokenizer.

        Args:
            embed_dim: Token width D.
            img_size: Nominal image side, pixels, a multiple of `patch_size`.
            patch_size: Patch side P, pixels.
            bands: Band names in image order; their number is the number of input channels.
            dynamic_img_size: Accept other image sizes and resample the positions to them.

        Raises:
            ValueError: If the image size is no multiple of the patch size or bands repeat.
        """
        super().__init__(img_size, patch_size, bands, dynamic_img_size)
        self.proj = nn.Conv2d(len(bands), embed_dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed an image.

        Args:
            image: Normalized image, shape (B, C, H, W).

        Returns:
            Tokens, shape (B, 1, L, D), and the patch grid.

        Raises:
            ValueError: If the image does not fit the bands, the patch size or the nominal size.
        """
        self._check(image)
        tokens = rearrange(self.proj(image), 'b d h w -> b 1 (h w) d')
        return tokens, self.grid(image)

    def patchify(self, image: Tensor) -> Tensor:
        """Pixels of each patch, (B, C, H, W) -> (B, 1, L, C·P·P)."""
        self._check(image)
        size = self.patch_size
        return rearrange(image, 'b c (h p) (w q) -> b 1 (h w) (c p q)', p=size, q=size)

    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Image of the patches, (B, 1, L, C·P·P) -> (B, C, H, W)."""
        return rearrange(
            patches, 'b 1 (h w) (c p q) -> b c (h p) (w q)', h=grid[0], p=self.patch_size, q=self.patch_size
        )

    def build_prediction(self, dim: int) -> nn.Module:
        """One linear layer."""
        return nn.Linear(dim, self.target_dim)

    @property
    def target_dim(self) -> int:
        """C·P·P numbers per patch."""
        return len(self.bands) * self.patch_size**2
