"""Multi-crop views (Caron et al. 2020) of images with any bands, in batches on the device."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import kornia.augmentation as K
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from explora_geo.bands import RGB, canonical


@dataclass(frozen=True)
class ViewsConfig:
    """Two global crops and several local crops per image; the defaults are close to DINOv2's.

    Nadir images have no up: their data modules also flip crops top to bottom and rotate them, unless that is
    set here. To flip crops only left to right, as DINOv2 does, set `vertical_flip` and `quarter_turns` to
    False.

    Attributes:
        global_size: Side of global crops, pixels; the backbone's image size if None.
        local_size: Side of local crops, pixels; 98 / 224 of the global ones if None.
        num_local: Local crops per image.
        global_scale: Smallest and largest share of the image's area in a global crop.
        local_scale: Smallest and largest share of the image's area in a local crop.
        horizontal_flip: Flip half of the crops left to right.
        vertical_flip: Flip half of the crops top to bottom; if None, set by the data module, or else off.
        quarter_turns: Rotate crops by multiples of 90 degrees; if None, set by the data module, or else off.
        jitter: Probability of changing brightness and contrast and, for RGB, saturation and hue.
        brightness: Largest relative change; for bands other than RGB, in standard deviations.
        contrast: Largest relative change.
        saturation: Largest relative change, RGB only.
        hue: Largest change as a share of the color circle, RGB only.
        color_range: Black and white for RGB operations, in the images' own units (DINOv2: the 8-bit range,
            0 and 255); the darkest and brightest value of each image if None.
        grayscale: Probability of a grayscale crop, RGB only.
        band_drop: Probability of blanking one band of a crop, for bands other than RGB.
        blur: Probabilities of Gaussian blur for first global, second global and local crops. DINOv2 states
            1, 0.1 and 0.5, but its code applies the complement: 0, 0.9 and 0.5.
        blur_sigma: Smallest and largest width of the blur, pixels (DINOv2: 0.1 and 2); if None, these for a
            crop of 224 pixels, and in proportion for others.
        solarize: Probability of solarizing the second global crop, RGB only.
        flips: Deprecated: `horizontal_flip` and `vertical_flip` in one.
    """

    global_size: int | None = None
    local_size: int | None = None
    num_local: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    horizontal_flip: bool = True
    vertical_flip: bool | None = None
    quarter_turns: bool | None = None
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    color_range: tuple[float, float] | None = None
    grayscale: float = 0.2
    band_drop: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    blur_sigma: tuple[float, float] | None = None
    solarize: float = 0.2
    flips: bool | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.flips is not None:
            new = f'horizontal_flip: {self.flips} and vertical_flip: {self.flips}'
            warnings.warn(f'flips: {self.flips} is deprecated, use {new}', FutureWarning, stacklevel=3)
            vars(self).update(horizontal_flip=self.flips, vertical_flip=self.flips, flips=None)
        for name, least in (('global_size', 2), ('local_size', 2), ('num_local', 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f'{name} must be at least {least}, got {value}')
        for name in ('color_range', 'blur_sigma'):
            low, high = getattr(self, name) or (1, 2)
            if not low < high or (name == 'blur_sigma' and low <= 0):
                rule = '0 < low < high' if name == 'blur_sigma' else 'low < high'
                raise ValueError(f'{name} must be (low, high) with {rule}, got {low, high}')
        for name in ('global_scale', 'local_scale'):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f'{name} must be (low, high) with 0 < low <= high <= 1, got {low, high}')
        chances = ('jitter', 'grayscale', 'band_drop', 'solarize')
        wrong = [n for n in chances if not 0 <= getattr(self, n) <= 1]
        if wrong or len(self.blur) != 3 or not all(0 <= p <= 1 for p in self.blur):
            raise ValueError(f'{", ".join(wrong) or "the 3 values of blur"} must be probabilities in [0, 1]')

    def sized(self, side: int = 224, patch: int = 14) -> 'ViewsConfig':
        """Return a copy with unset sizes filled in.

        Args:
            side: Side of the backbone's image, pixels.
            patch: Side of its patches, pixels; the local size filled in is a multiple of it.
        """
        size = self.global_size or side
        local = max(1, round(size / patch * 98 / 224)) * patch  # DINOv2's sides are 224 and 98
        return replace(self, global_size=size, local_size=self.local_size or local)

    def oriented(self, vertical_flip: bool, quarter_turns: bool) -> 'ViewsConfig':
        """Return a copy with unset flips and rotations filled in from the symmetries of the data."""
        return replace(
            self,
            vertical_flip=vertical_flip if self.vertical_flip is None else self.vertical_flip,
            quarter_turns=quarter_turns if self.quarter_turns is None else self.quarter_turns,
        )


class MultiCrop:
    """Multi-crop views of a batch.

    Color jitter, grayscale and solarization are defined only for red, green and blue and applied only
    to these; other bands get changes of brightness and contrast about their mean, and band dropping.
    """

    def __init__(
        self, config: ViewsConfig, bands: Sequence[str], mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        """Initialize a MultiCrop.

        Args:
            config: Settings of the views; crops of 224 and 98 pixels if it sets no sizes.
            bands: Names of the bands, in image order.
            mean: Mean of each band used to normalize the images, shape (C,), if known: color
                operations need the original colors.
            std: Standard deviation of each band, shape (C,), as for *mean*.
        """
        self.config = config = config.sized()
        self.rgb = tuple(canonical(band) for band in bands) == RGB
        self.mean = torch.zeros(1) if mean is None else mean.view(-1, 1, 1)
        self.std = torch.ones(1) if std is None else std.view(-1, 1, 1)
        first, second, local = config.blur
        self._colors = self._color_steps(len(bands))
        sizes = ((config.global_size, first), (config.global_size, second), (config.local_size, local))
        self._blurs = [_blur(size or 0, p, config.blur_sigma) for size, p in sizes]
        self._solarize = K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=config.solarize)

    @torch.no_grad()
    def __call__(self, image: Tensor, local: bool = True) -> list[Tensor]:
        """Draw the views of a batch.

        Args:
            image: Normalized images, shape (B, C, H, W), or time series, shape (B, T, C, H, W), whose
                frames all share the same crop and changes.
            local: Whether to draw local crops too.

        Returns:
            Global crops, all first ones before all second ones, shape (2·B, ..., G, G), and local
            crops, if any, in the same order, shape (n·B, ..., g, g).
        """
        with torch.autocast(image.device.type, enabled=False):
            config = self.config
            frames = image.shape[1] if image.ndim == 5 else None
            pixels = image.float().flatten(1, 2) if frames else image.float()  # (B,T,C,H,W) -> (B,T·C,H,W)
            span = self._range(pixels) if self.rgb else None
            pair = self._cut(pixels, 2, config.global_size or 0, config.global_scale).chunk(2)
            views = [torch.cat([self._paint(pair[i], frames, self._blurs[i], i == 1, span) for i in (0, 1)])]
            if local and config.num_local:
                crops = self._cut(pixels, config.num_local, config.local_size or 0, config.local_scale)
                views.append(self._paint(crops, frames, self._blurs[2], False, span))
        return [view.unflatten(1, (frames, -1)) if frames else view for view in views]

    def _cut(self, pixels: Tensor, count: int, size: int, scale: tuple[float, float]) -> Tensor:
        """Crop, flip and rotate in one interpolation, (B, C, H, W) -> (count·B, C, size, size)."""
        crops = pixels.repeat(count, 1, 1, 1)
        config = self.config
        flips = config.horizontal_flip, bool(config.vertical_flip)
        where = _random_affine(len(crops), scale, flips, bool(config.quarter_turns))
        grid = F.affine_grid(where.to(crops), [*crops.shape[:2], size, size], align_corners=False)
        # kornia's batched crop fills with zeros, which its bicubic kernel mixes into the borders.
        return F.grid_sample(crops, grid, 'bicubic', padding_mode='border', align_corners=False)

    def _range(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return black and white of each image, in its own units, each of shape (B, 1, 1, 1)."""
        shape = (len(pixels), 1, 1, 1)
        if self.config.color_range is not None:
            low, high = self.config.color_range
            return pixels.new_full(shape, low), pixels.new_full(shape, high)
        bands = pixels.unflatten(1, (-1, 3)).transpose(1, 2).flatten(2)  # (B,T·3,H,W) -> (B,3,T·H·W)
        mean, std = (x.to(pixels).flatten() for x in (self.mean, self.std))
        low = (bands.amin(2) * std + mean).amin(1)
        return low.view(shape), (bands.amax(2) * std + mean).amax(1).view(shape)

    def _paint(
        self, crops: Tensor, frames: int | None, blur: Any, solarize: bool, span: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """Jitter, blur and solarize crops, shape (N, T·C, h, w)."""
        size = crops.shape[-2]
        # Stack frames vertically, so that one draw per image applies to all its frames.
        tall: dict[str, Any] = {'pattern': 'b (t c) h w -> b c (t h) w', 't': frames or 1}
        flat: dict[str, Any] = {'pattern': 'b c (t h) w -> b (t c) h w', 'h': size}
        crops = rearrange(crops, **tall)
        mean, std = self.mean.to(crops), self.std.to(crops)
        if span is not None:
            low, high = (x.repeat(len(crops) // len(x), 1, 1, 1) for x in span)
            scale = (high - low).clamp(min=1e-6)
            # Color operations are defined on [0, 1], which bicubic interpolation overshoots.
            crops = ((crops * std + mean - low) / scale).clamp(0, 1)
        for step in self._colors:
            crops = step(crops)
        crops = rearrange(blur(rearrange(crops, **flat)), **tall)
        if span is not None:
            crops = self._solarize(crops) if solarize else crops
            crops = (crops * scale + low - mean) / std
        return rearrange(crops, **flat)

    def _color_steps(self, bands: int) -> list[Any]:
        config = self.config
        if self.rgb:
            jitter = K.ColorJitter(
                config.brightness, config.contrast, config.saturation, config.hue, p=config.jitter
            )
            return [jitter, K.RandomGrayscale(p=config.grayscale)]
        factors = [(1 - x, 1 + x) for x in (config.brightness, config.contrast)]
        steps: list[Any] = [
            K.RandomBrightness(factors[0], clip_output=False, p=config.jitter),
            K.RandomContrast(factors[1], clip_output=False, p=config.jitter),
        ]
        # Dropping its only band would blank an image.
        return [*steps, K.RandomChannelDropout(p=config.band_drop)] if bands > 1 else steps


def _blur(size: int, probability: float, sigma: tuple[float, float] | None) -> Any:
    """Make a Gaussian blur, by default with DINOv2's width for 224-pixel crops, scaled to the crop."""
    low, high = sigma or (0.1 * size / 224, 2.0 * size / 224)
    side = 2 * math.ceil(2 * high) + 1
    return K.RandomGaussianBlur((side, side), (low, high), p=probability)


def _random_affine(count: int, scale: tuple[float, float], flips: tuple[bool, bool], turns: bool) -> Tensor:
    """Draw maps from a crop's coordinates to its image's, both from -1 to 1, shape (count, 2, 3).

    Area and aspect ratio are drawn as in torchvision's `RandomResizedCrop`; a side longer than the image
    is shortened to fit.
    """
    area = torch.empty(count).uniform_(*scale)
    ratio = torch.empty(count).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)
    center = (1 - sides) * torch.empty(count, 2).uniform_(-1, 1)
    turn = torch.randint(0, 4, (count,)) if turns else torch.zeros(count, dtype=torch.long)
    cosine, sine = torch.tensor([1.0, 0, -1, 0])[turn], torch.tensor([0.0, 1, 0, -1])[turn]
    rotation = torch.stack([cosine, -sine, sine, cosine], dim=1).view(count, 2, 2)
    if any(flips):
        # The first column of the map belongs to the crop's x, so that the flip precedes the rotation.
        signs = torch.randint(0, 2, (count, 1, 2)) * 2 - 1
        rotation = rotation * torch.where(torch.tensor(flips), signs, 1)
    return torch.cat([sides[:, :, None] * rotation, center[:, :, None]], dim=2)
