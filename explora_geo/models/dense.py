"""Dense heads by name, which map a ViT's patch tokens to per-pixel scores."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from explora_geo._compat import smp_decoder
from explora_geo.models.readout import Slots, to_map
from explora_geo.models.vit import Features


class DenseHead(nn.Module):
    """Per-pixel scores from several blocks, through a segmentation-models-pytorch decoder."""

    def __init__(
        self,
        name: str,
        embed_dim: int,
        patch_size: int,
        outputs: int,
        num_slots: int = 1,
        slots: Slots = 'mean',
        channels: int = 256,
    ) -> None:
        """Initialize a DenseHead.

        Args:
            name: `linear`, `psp` (pyramid pooling, PSANet-like), `upernet`, `dpt`, `fpn` or `pan`.
            embed_dim: Width D of a token.
            patch_size: Patch side, pixels.
            outputs: Scores per pixel.
            num_slots: Slots S of the backbone.
            slots: Slot reduction: `mean`, or `concat` along the width.
            channels: Width of the pyramid and the decoder.
        """
        super().__init__()
        if name not in HEADS:
            raise ValueError(f'head must be one of {", ".join(HEADS)}, got {name!r}')
        self.name, self.slots = name, slots
        width = embed_dim * (num_slots if slots == 'concat' else 1)
        self.decoder = HEADS[name](width, patch_size, outputs, channels)

    def forward(self, features: list[Features], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Compute scores, shape (B, outputs, H, W).

        Args:
            features: Features of four blocks, last block last.
            grid: Patches along height and width.
            size: Height and width of the image, pixels.

        Raises:
            ValueError: If the head does not support this image size or single-image batches.
        """
        if self.name in ('fpn', 'dpt') and (size[0] % 32 or size[1] % 32):
            raise ValueError(
                f'head {self.name} needs image sides that are multiples of 32, got {size[0]}x{size[1]}: '
                'change the image size or use head upernet'
            )
        if self.name == 'pan' and min(size) < 128:  # its attention halves the 1/16 map three times
            raise ValueError(f'head pan needs image sides of at least 128 pixels, got {size[0]}x{size[1]}')
        if self.name in ('upernet', 'pan') and self.training and len(features[0].cls) == 1:
            raise ValueError(  # batch norm would see one value per image
                'heads upernet and pan need training batches of at least two images: raise batch_size, drop '
                'a smaller last batch (drop_last), or use head linear, fpn, psp or dpt'
            )
        maps = [to_map(f, grid, self.slots) for f in features]
        return resample(self.decoder(maps, size), size)


class FeaturePyramid(nn.Module):
    """Multi-scale maps for convolutional decoders, from a ViT's single scale (Li et al. 2022, section 3).

    Transposed convolutions give finer maps, max pooling coarser ones; interpolation covers patch sides that
    are no power of two, such as 14.
    """

    def __init__(
        self, in_channels: int, channels: int, patch_size: int, strides: Sequence[int] = (4, 8, 16, 32)
    ) -> None:
        """Initialize a FeaturePyramid with levels of these strides, image pixels per cell."""
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
        """Compute levels of at least one cell, shape (B, channels, H / stride, W / stride).

        Args:
            maps: One map per level, shape (B, D, h, w) each.
            size: Height and width of the image, pixels.
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
    """Resample a map bilinearly, shape (B, K, h, w) -> (B, K, *size)."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size, mode='bilinear', align_corners=False)


class _Linear(nn.Module):
    """A parameter-free batch norm and one linear layer on the patches of the last block (MAE's probe)."""

    def __init__(self, width: int, patch_size: int, outputs: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False, eps=1e-6)
        self.linear = nn.Conv2d(width, outputs, 1)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        return self.linear(self.norm(maps[-1]))


class _Pyramid(nn.Module):
    """A pyramid, a segmentation-models-pytorch decoder, and a score layer."""

    def __init__(
        self,
        build: Callable[[int], nn.Module],
        width: int,
        patch_size: int,
        outputs: int,
        channels: int,
        strides: Sequence[int] = (4, 8, 16, 32),
    ) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(width, channels, patch_size, strides)
        self.decoder = build(channels)
        self.scores = nn.Conv2d(getattr(self.decoder, 'out_channels', channels), outputs, 3, padding=1)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        levels = self.pyramid(maps[-len(self.pyramid.strides) :], size)
        if len(levels) > 1:  # decoders also expect full and half resolution
            levels = [levels[0].new_empty(0)] * 2 + levels
        return self.scores(self.decoder(levels))


class _DPT(nn.Module):
    """Reassembled maps of four blocks, fused coarse to fine (Ranftl et al. 2021)."""

    def __init__(self, width: int, patch_size: int, outputs: int, channels: int) -> None:
        super().__init__()
        # The decoder supports strides that are powers of two; others are resampled to 16.
        self.stride = patch_size if patch_size in (4, 8, 16, 32) else 16
        self.decoder = smp_decoder('DPTDecoder')(
            encoder_out_channels=[width] * 4,
            encoder_output_strides=[self.stride] * 4,
            encoder_has_prefix_tokens=False,
            readout='ignore',
            intermediate_channels=[channels] * 4,
            fusion_channels=channels,
        )
        self.scores = smp_decoder('DPTSegmentationHead')(channels, outputs)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        target = (size[0] // self.stride, size[1] // self.stride)
        return self.scores(self.decoder([resample(x, target) for x in maps], [None] * 4))


#: Decoders by name.
HEADS: dict[str, Callable[..., Any]] = {
    'linear': _Linear,
    # On the map at 1/8, the scale of PSPNet and PSANet
    'psp': partial(_Pyramid, lambda c: smp_decoder('PSPDecoder')([c], out_channels=c), strides=(8,)),
    'upernet': partial(
        _Pyramid, lambda c: smp_decoder('UPerNetDecoder')([0, 0, *[c] * 4], decoder_channels=c)
    ),
    'dpt': _DPT,
    'fpn': partial(_Pyramid, lambda c: smp_decoder('FPNDecoder')([0, 0, *[c] * 4], pyramid_channels=c)),
    'pan': partial(_Pyramid, lambda c: smp_decoder('PANDecoder')([0, 0, *[c] * 3], 4, c), strides=(4, 8, 16)),
}
