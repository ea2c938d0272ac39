"""Multi-crop views (Caron et al. 2020) of images with any bands, in batches on the device."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import kornia.augmentation as K
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..datasets.bands import RGB, canonical


@dataclass(frozen=True)
class ViewsConfig:
    """Two global crops and several local ones of every image; the defaults are DINOv2's.

    Images from above have no up, so crops are also turned and mirrored freely, which DINOv2's are not.

    Attributes:
        global_size: Side of global crops, pixels.
        local_size: Side of local crops, pixels.
        num_local: Local crops per image.
        global_scale: Smallest and largest share of the image's area in a global crop.
        local_scale: Likewise in a local crop.
        flips: Mirror crops left to right and top to bottom, each half of the time.
        quarter_turns: Turn crops by multiples of 90 degrees.
        jitter: Probability of changes of brightness and contrast, and for RGB of saturation and hue.
        brightness: Largest relative change; for other bands than RGB, in standard deviations.
        contrast: Largest relative change.
        saturation: Largest relative change, RGB only.
        hue: Largest change as a share of the colour circle, RGB only.
        grayscale: Probability of a grey crop, RGB only.
        band_drop: Probability that one band of a crop is blank, for other bands than RGB.
        blur: Probabilities of Gaussian blur for the first global, second global and local crops.
        solarize: Probability of solarisation of the second global crop, RGB only.
    """

    global_size: int = 224
    local_size: int = 98
    num_local: int = 8
    global_scale: tuple[float, float] = (0.32, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.32)
    flips: bool = True
    quarter_turns: bool = True
    jitter: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    grayscale: float = 0.2
    band_drop: float = 0.2
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarize: float = 0.2

    def __post_init__(self) -> None:
        """Check the values."""
        for name, least in (('global_size', 2), ('local_size', 2), ('num_local', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'{name} must be at least {least}, got {getattr(self, name)}')
        for name in ('global_scale', 'local_scale'):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f'{name} must be (low, high) with 0 < low <= high <= 1, got {low, high}')
        chances = ('jitter', 'grayscale', 'band_drop', 'solarize')
        wrong = [n for n in chances if not 0 <= getattr(self, n) <= 1]
        if wrong or len(self.blur) != 3 or not all(0 <= p <= 1 for p in self.blur):
            raise ValueError(f'{", ".join(wrong) or "blur"} must hold probabilities in [0, 1]')


class MultiCrop:
    """Makes the views of a batch.

    Colour jitter, grey and solarisation are defined for red, green and blue alone and are applied to
    these alone; other bands get brightness and contrast about their mean, and dropped bands.
    """

    def __init__(
        self, config: ViewsConfig, bands: Sequence[str], mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        """Initialize a MultiCrop.

        Args:
            config: What to draw.
            bands: Names of the bands, in image order.
            mean: Mean of each band by which images were normalised, shape (C,), if known: colour
                operations are defined on colours.
            std: Standard deviation of each band, shape (C,), likewise.
        """
        self.config = config
        self.rgb = tuple(canonical(band) for band in bands) == RGB
        self.mean = torch.zeros(1) if mean is None else mean.view(-1, 1, 1)
        self.std = torch.ones(1) if std is None else std.view(-1, 1, 1)
        first, second, local = config.blur
        size = config.global_size
        self._colours = self._colour_steps(len(bands))
        self._blurs = [_blur(size, first), _blur(size, second), _blur(config.local_size, local)]
        self._solarise = K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=config.solarize)

    @torch.no_grad()
    def __call__(self, image: Tensor, local: bool = True) -> list[Tensor]:
        """Draw the views of a batch.

        Args:
            image: Normalised images, shape (B, C, H, W), or time series, shape (B, T, C, H, W), whose
                frames all get the same crop and the same changes.
            local: Draw local crops too.

        Returns:
            Global crops, all first ones before all second ones, shape (2·B, ..., G, G), and unless there
            are none, local crops in the same way, shape (n·B, ..., g, g).
        """
        with torch.autocast(image.device.type, enabled=False):
            config = self.config
            frames = image.shape[1] if image.ndim == 5 else None
            pixels = image.float().flatten(1, 2) if frames else image.float()  # (B,T,C,H,W) -> (B,T·C,H,W)
            pair = self._cut(pixels, 2, config.global_size, config.global_scale).chunk(2)
            views = [torch.cat([self._paint(pair[i], frames, self._blurs[i], i == 1) for i in (0, 1)])]
            if local and config.num_local:
                crops = self._cut(pixels, config.num_local, config.local_size, config.local_scale)
                views.append(self._paint(crops, frames, self._blurs[2], False))
        return [view.unflatten(1, (frames, -1)) if frames else view for view in views]

    def _cut(self, pixels: Tensor, count: int, size: int, scale: tuple[float, float]) -> Tensor:
        """Crop, mirror and turn in one interpolation, (B, C, H, W) -> (count·B, C, size, size)."""
        crops = pixels.repeat(count, 1, 1, 1)
        where = _random_affine(len(crops), scale, self.config.flips, self.config.quarter_turns)
        grid = F.affine_grid(where.to(crops), [*crops.shape[:2], size, size], align_corners=False)
        # kornia's batched crop fills with zeros, which its bicubic kernel mixes into the borders.
        return F.grid_sample(crops, grid, 'bicubic', padding_mode='border', align_corners=False)

    def _paint(self, crops: Tensor, frames: int | None, blur: Any, solarise: bool) -> Tensor:
        """Change the pixels of crops, shape (N, T·C, h, w)."""
        size = crops.shape[-2]
        # Frames one below the other: what is drawn for an image holds for all its frames.
        tall: dict[str, Any] = {'pattern': 'b (t c) h w -> b c (t h) w', 't': frames or 1}
        flat: dict[str, Any] = {'pattern': 'b c (t h) w -> b (t c) h w', 'h': size}
        crops = rearrange(crops, **tall)
        mean, std = self.mean.to(crops), self.std.to(crops)
        if self.rgb:
            crops = crops * std + mean
            low, high = crops.amin((1, 2, 3), keepdim=True), crops.amax((1, 2, 3), keepdim=True)
            scale = (high - low).clamp(min=1e-6)
            crops = (crops - low) / scale  # colour operations are defined on [0, 1]
        for step in self._colours:
            crops = step(crops)
        crops = rearrange(blur(rearrange(crops, **flat)), **tall)
        if self.rgb:
            crops = self._solarise(crops) if solarise else crops
            crops = (crops * scale + low - mean) / std
        return rearrange(crops, **flat)

    def _colour_steps(self, bands: int) -> list[Any]:
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
        # Without its only band nothing is left of an image.
        return [*steps, K.RandomChannelDropout(p=config.band_drop)] if bands > 1 else steps


def _blur(size: int, probability: float) -> Any:
    """DINOv2's blur, whose width of 0.1 to 2 pixels belongs to crops of 224, in proportion to the crop."""
    low, high = 0.1 * size / 224, 2.0 * size / 224
    side = 2 * math.ceil(2 * high) + 1
    return K.RandomGaussianBlur((side, side), (low, high), p=probability)


def _random_affine(count: int, scale: tuple[float, float], flips: bool, turns: bool) -> Tensor:
    """Maps from a crop's coordinates to its image's, both from -1 to 1, shape (count, 2, 3).

    Area and aspect ratio are drawn as in torchvision's `RandomResizedCrop`; a side that would reach over
    the image is cut to it.
    """
    area = torch.empty(count).uniform_(*scale)
    ratio = torch.empty(count).uniform_(math.log(3 / 4), math.log(4 / 3)).exp()
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)
    centre = (1 - sides) * torch.empty(count, 2).uniform_(-1, 1)
    turn = torch.randint(0, 4, (count,)) if turns else torch.zeros(count, dtype=torch.long)
    cosine, sine = torch.tensor([1.0, 0, -1, 0])[turn], torch.tensor([0.0, 1, 0, -1])[turn]
    rotation = torch.stack([cosine, -sine, sine, cosine], dim=1).view(count, 2, 2)
    if flips:
        rotation = rotation * (torch.randint(0, 2, (count, 1, 2)) * 2 - 1)
    return torch.cat([sides[:, :, None] * rotation, centre[:, :, None]], dim=2)
