"""Tokenizers turn images into tokens with a slot axis, (B, S, L, D): the only code that knows bands."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn

from explora_geo.models.position import resample_position, sincos_2d

RGB = ('red', 'green', 'blue')


class Tokenizer(nn.Module, ABC):
    """What a ViT asks of its input side.

    A ViT stores one position code, `pos_embed`; the tokenizer says its shape and how it becomes the
    position of each token, so that slots (channel groups, frames) are no business of the trunk.

    Attributes:
        bands: Names of the bands, in the order in which images carry them.
        patch_size: Patch side P, pixels.
        grid_size: Patches along height and width at the nominal image size.
        num_slots: Slots S of the tokens at the nominal input.
    """

    bands: tuple[str, ...]
    patch_size: int
    grid_size: tuple[int, int]
    num_slots: int = 1

    @abstractmethod
    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed an image.

        Args:
            image: Normalised image, shape (B, C, H, W) or as the tokenizer says.

        Returns:
            Tokens without position, shape (B, S, L, D), and the patch grid (height, width).
        """

    @abstractmethod
    def position(
        self, stored: Tensor, grid: tuple[int, int], timestamps: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Position codes of the class token and of the patches.

        Args:
            stored: The ViT's stored code, class token first, shape (1, 1 + L, D').
            grid: Patch grid of this image.
            timestamps: Acquisition times for tokenizers that use them, shape (B, T, 3).

        Returns:
            Class token position, shape (1, 1, D), and patch positions, broadcastable to (B, S, L, D).
        """

    @abstractmethod
    def sincos(self, dim: int, grid: tuple[int, int], timestamps: Tensor | None = None) -> Tensor:
        """Fixed position codes at any width, for decoders; broadcastable to (B, S, L, dim)."""

    @abstractmethod
    def patchify(self, image: Tensor) -> Tensor:
        """Pixels of each patch in (c, p, q) order: the MAE target, shape (B, S, L, C·P·P)."""

    @abstractmethod
    def unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """Inverse of `patchify`."""

    @property
    @abstractmethod
    def target_dim(self) -> int:
        """Numbers per patch that a decoder predicts."""

    def grid(self, image: Tensor) -> tuple[int, int]:
        """Patches along height and width of an image, shape (..., H, W)."""
        return image.shape[-2] // self.patch_size, image.shape[-1] // self.patch_size

    @property
    def num_patches(self) -> int:
        """Patches L per slot at the nominal image size."""
        return self.grid_size[0] * self.grid_size[1]


class PatchTokenizer(Tokenizer):
    """One slot of patches over all bands: the ordinary ViT patch embedding, for any band count.

    The convolution is named `proj` as in timm, MAE and DINOv2, so that their weights load as they are.
    """

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
        super().__init__()
        if img_size < patch_size or img_size % patch_size:
            raise ValueError(f'img_size must be a multiple of patch_size, got {img_size=}, {patch_size=}')
        if not bands or len(set(bands)) != len(bands):
            raise ValueError(f'bands must be distinct names, got {tuple(bands)}')
        self.bands = tuple(bands)
        self.img_size = img_size
        self.patch_size = patch_size
        self.grid_size = (img_size // patch_size, img_size // patch_size)
        self.dynamic_img_size = dynamic_img_size
        self.proj = nn.Conv2d(len(bands), embed_dim, patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed an image.

        Args:
            image: Normalised image, shape (B, C, H, W).

        Returns:
            Tokens, shape (B, 1, L, D), and the patch grid.

        Raises:
            ValueError: If the image does not fit the bands, the patch size or the nominal size.
        """
        self._check(image)
        tokens = rearrange(self.proj(image), 'b d h w -> b 1 (h w) d')
        return tokens, self.grid(image)

    def _check(self, image: Tensor) -> None:
        """Refuse an image that does not fit the bands, the patch size or the nominal size."""
        if image.ndim != 4 or image.shape[1] != len(self.bands):
            raise ValueError(
                f'the model reads images of shape (B, {len(self.bands)}, H, W) with bands '
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

    def position(
        self, stored: Tensor, grid: tuple[int, int], timestamps: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stored positions, resampled to the grid; see `Tokenizer.position`."""
        patches = resample_position(stored[:, 1:], self.grid_size, grid)
        return stored[:, :1], patches.unsqueeze(1)

    def sincos(self, dim: int, grid: tuple[int, int], timestamps: Tensor | None = None) -> Tensor:
        """2-D sine-cosine codes, shape (1, 1, L, dim)."""
        return sincos_2d(dim, grid)[None, None]

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

    @property
    def target_dim(self) -> int:
        """C·P·P numbers per patch."""
        return len(self.bands) * self.patch_size**2
