"""A feature pyramid on a plain ViT, as convolutional decoders expect it."""

from collections.abc import Sequence

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo.models.pooling import Slots, reduce_slots
from explora_geo.models.vit import Features

#: Strides of the levels, pixels of the image per cell.
STRIDES = (4, 8, 16, 32)


def spread(depth: int, count: int = 4) -> list[int]:
    """Indices of evenly spaced blocks, the last among them: 2, 5, 8, 11 of twelve."""
    return [max(depth * (i + 1) // count - 1, 0) for i in range(count)]


def to_map(features: Features, grid: tuple[int, int], slots: Slots) -> Tensor:
    """Patch tokens as a map, shape (B, D, h, w), with slots reduced."""
    return rearrange(reduce_slots(features.patches, slots), 'b (h w) d -> b d h w', h=grid[0])


class FeaturePyramid(nn.Module):
    """Maps at 1/4, 1/8, 1/16 and 1/32 of the image from one scale (Li et al. 2022, section 3).

    Finer maps come from transposed convolutions, coarser ones from max pooling; what a patch side leaves
    (14 is no power of two) is interpolated.
    """

    def __init__(
        self, in_channels: int, channels: int, patch_size: int, strides: Sequence[int] = STRIDES
    ) -> None:
        """Initialize a FeaturePyramid.

        Args:
            in_channels: Width of the input maps.
            channels: Width of the levels.
            patch_size: Patch side, pixels.
            strides: Strides of the levels, pixels.
        """
        super().__init__()
        self.strides = tuple(strides)
        self.levels = nn.ModuleList()
        for stride in self.strides:
            steps: list[nn.Module] = [nn.Conv2d(in_channels, channels, 1)]
            factor = patch_size / stride
            while factor >= 2:
                steps += [nn.GELU(), nn.ConvTranspose2d(channels, channels, 2, stride=2)]
                factor /= 2
            self.levels.append(nn.Sequential(*steps))

    def forward(self, maps: Sequence[Tensor], size: tuple[int, int]) -> list[Tensor]:
        """Make the levels.

        Args:
            maps: One map per level, each of shape (B, D, h, w).
            size: Height and width of the image, pixels.

        Returns:
            Maps of shape (B, channels, H / stride, W / stride), finest first; at least one cell.
        """
        found = []
        for stride, level, x in zip(self.strides, self.levels, maps, strict=True):
            target = (max(size[0] // stride, 1), max(size[1] // stride, 1))
            x = level(x)
            if x.shape[-2] > target[0] or x.shape[-1] > target[1]:
                x = F.adaptive_max_pool2d(x, target)
            found.append(resample(x, target))
        return found


def resample(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resampling of a map, shape (B, K, h, w) -> (B, K, *size)."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode='bilinear', align_corners=False)
