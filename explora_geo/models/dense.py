"""Dense heads by name: from a ViT's patch tokens to a score per pixel."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from explora_geo._compat import smp_decoder
from explora_geo.models.pooling import Slots
from explora_geo.models.pyramid import STRIDES, FeaturePyramid, resample, to_map
from explora_geo.models.vit import Features

#: Width of pyramid levels and decoders.
CHANNELS = 256


class DenseHead(nn.Module):
    """Scores per pixel from the features of some blocks.

    Decoders are segmentation-models-pytorch's; what they expect of a convolutional encoder a
    `FeaturePyramid` makes of the blocks.
    """

    def __init__(
        self,
        name: str,
        embed_dim: int,
        patch_size: int,
        outputs: int,
        num_slots: int = 1,
        slots: Slots = 'mean',
        channels: int = CHANNELS,
    ) -> None:
        """Initialize a DenseHead.

        Args:
            name: `linear`, `psp` (pyramid pooling, PSANet-like), `upernet`, `dpt`, `fpn` or `pan`.
            embed_dim: Width D of a token.
            patch_size: Patch side, pixels.
            outputs: Scores per pixel.
            num_slots: Slots S of the backbone.
            slots: How they are reduced: `mean`, or `concat` of their widths.
            channels: Width of pyramid and decoder.

        Raises:
            ValueError: If the name is unknown.
        """
        super().__init__()
        if name not in HEADS:
            raise ValueError(f'head must be one of {", ".join(HEADS)}, got {name!r}')
        self.name, self.slots = name, slots
        width = embed_dim * (num_slots if slots == 'concat' else 1)
        self.decoder = HEADS[name](width, patch_size, outputs, channels)

    def forward(self, features: list[Features], grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Scores of an image.

        Args:
            features: Features of four blocks, last block last.
            grid: Patches along height and width.
            size: Height and width of the image, pixels.

        Returns:
            Scores, shape (B, outputs, H, W).
        """
        maps = [to_map(f, grid, self.slots) for f in features]
        return resample(self.decoder(maps, size), size)


class _Linear(nn.Module):
    """One linear layer per patch of the last block, after a batch norm without parameters (MAE's probe)."""

    def __init__(self, width: int, patch_size: int, outputs: int, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(width, affine=False, eps=1e-6)
        self.linear = nn.Conv2d(width, outputs, 1)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        return self.linear(self.norm(maps[-1]))


class _Pyramid(nn.Module):
    """Pyramid, a decoder of segmentation-models-pytorch, and a layer of scores."""

    strides: tuple[int, ...] = STRIDES
    # Whether a batch norm sees one value an image.
    pools = True

    def __init__(self, width: int, patch_size: int, outputs: int, channels: int) -> None:
        super().__init__()
        self.pyramid = FeaturePyramid(width, channels, patch_size, self.strides)
        self.decoder = self.build(channels)
        self.scores = nn.Conv2d(getattr(self.decoder, 'out_channels', channels), outputs, 3, padding=1)

    def build(self, channels: int) -> nn.Module:
        return smp_decoder('UPerNetDecoder')([0, 0, *[channels] * 4], decoder_channels=channels)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        if self.pools and self.training and len(maps[0]) == 1:
            raise ValueError(
                'the heads upernet and pan need batches of two images or more: raise batch_size, leave out '
                'a shorter last batch (drop_last), or take the head linear, fpn, psp or dpt'
            )
        levels = self.pyramid(maps[-len(self.strides) :], size)
        unread = levels[0].new_empty(0)  # decoders list the full and half resolution, too
        return self.scores(self.decoder([unread, unread, *levels]))


class _FPN(_Pyramid):
    pools = False

    def build(self, channels: int) -> nn.Module:
        return smp_decoder('FPNDecoder')([0, 0, *[channels] * 4], pyramid_channels=channels)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        _check_multiple('fpn', size)
        return super().forward(maps, size)


class _PAN(_Pyramid):
    strides = (4, 8, 16)

    def build(self, channels: int) -> nn.Module:
        return smp_decoder('PANDecoder')([0, 0, *[channels] * 3], 4, channels)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        if min(size) < 128:  # its attention halves the map at 1/16 three times
            raise ValueError(f'the head pan needs images of at least 128 pixels, got {size[0]}x{size[1]}')
        return super().forward(maps, size)


class _PSP(_Pyramid):
    """Pyramid pooling on the map at 1/8, the scale of PSPNet and PSANet."""

    strides = (8,)
    pools = False

    def build(self, channels: int) -> nn.Module:
        return smp_decoder('PSPDecoder')([channels], out_channels=channels)

    def forward(self, maps: list[Tensor], size: tuple[int, int]) -> Tensor:
        return self.scores(self.decoder(self.pyramid(maps[-1:], size)))


class _DPT(nn.Module):
    """Reassembled maps of four blocks, fused from coarse to fine (Ranftl et al. 2021)."""

    def __init__(self, width: int, patch_size: int, outputs: int, channels: int) -> None:
        super().__init__()
        # The decoder knows strides that are powers of two: others are resampled to 16.
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
        _check_multiple('dpt', size)
        target = (size[0] // self.stride, size[1] // self.stride)
        maps = [resample(x, target) for x in maps]
        return self.scores(self.decoder(maps, [None] * 4))


def _check_multiple(name: str, size: tuple[int, int]) -> None:
    if size[0] % 32 or size[1] % 32:
        raise ValueError(
            f'the head {name} needs image sides that are multiples of 32, got {size[0]}x{size[1]}: choose '
            'another image size or the head upernet'
        )


#: Decoders by name.
HEADS: dict[str, Callable[..., Any]] = {
    'linear': _Linear,
    'psp': _PSP,
    'upernet': _Pyramid,
    'dpt': _DPT,
    'fpn': _FPN,
    'pan': _PAN,
}
