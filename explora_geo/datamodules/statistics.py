"""Mean and standard deviation of bands: given by name, given in order, or estimated."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from explora_geo.bands import RGB, canonical, spell

#: One value per band: by name, in band order, ImageNet's, or estimated.
Statistic = Literal['auto', 'imagenet'] | Mapping[str, float] | Sequence[float]

#: Maximum number of tiles read to estimate statistics.
SAMPLES = 512

#: ImageNet's statistics for pixels from 0 to 255.
IMAGENET = {
    'mean': {'red': 0.485 * 255, 'green': 0.456 * 255, 'blue': 0.406 * 255},
    'std': {'red': 0.229 * 255, 'green': 0.224 * 255, 'blue': 0.225 * 255},
}


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each band for normalizing images.

    Attributes:
        mean: Mean of each band in units of the files: by band name, in band order, ``'imagenet'`` (red, green
            and blue from 0 to 255) or ``'auto'``: published values if the data set has them, else estimates
            from up to 512 evenly spaced training images.
        std: Standard deviation of each band, as for *mean*.
        clip: Map values within two standard deviations of the mean to [0, 1] and clip the rest, as in SatMAE,
            instead of computing (image - mean) / std; the data module's choice if None.
    """

    mean: Statistic = 'auto'
    std: Statistic = 'auto'
    clip: bool | None = None

    def settle(
        self, bands: Sequence[str], images: Iterable[Tensor], published: 'Statistics | None' = None
    ) -> tuple[Tensor, Tensor]:
        """Determine mean and standard deviation in units of the images, float32, each of shape (C,).

        Args:
            bands: Names of the bands of the images.
            images: Images to estimate from, each of shape (C, H, W); read only if needed.
            published: Values that replace ``'auto'``.

        Raises:
            ValueError: If values do not match the bands, or there is no image to estimate from.
        """
        settled: list[Any] = []
        # Check given values before spending time on estimating the rest.
        for name in ('mean', 'std'):
            value = getattr(self, name)
            value = getattr(published, name, 'auto') if value == 'auto' else value
            settled.append(None if value == 'auto' else resolve(value, bands, name))
        estimated: Any = estimate(images) if None in settled else (None, None)
        mean, std = (e if s is None else s for s, e in zip(settled, estimated, strict=True))
        return mean, std


def resolve(value: Mapping[str, float] | Sequence[float] | str, bands: Sequence[str], name: str) -> Tensor:
    """Order a given ``mean`` or ``std``, as *name* says, by the bands: float32, shape (C,).

    Raises:
        ValueError: If values are missing, not finite or of the wrong number, or a ``std`` is not positive.
    """
    if isinstance(value, str):
        if value != 'imagenet':
            raise ValueError(f"{name} must be 'auto', 'imagenet' or numbers, got {value!r}")
        if not set(spell(bands)) <= set(RGB):  # Sentinel-2's B04 is red, too, but not 8-bit
            raise ValueError(
                f"{name}='imagenet' is only available for the bands {RGB}, got {tuple(bands)}; "
                f"set {name} by band name, or to 'auto'"
            )
        value = IMAGENET[name]
    if isinstance(value, Mapping):
        known = {canonical(band): number for band, number in value.items()}
        if missing := [band for band in bands if canonical(band) not in known]:
            raise ValueError(
                f'{name} must have a value for every band, but {missing} are missing: '
                f'bands are {tuple(bands)}, got {tuple(value)}'
            )
        value = [known[canonical(band)] for band in bands]
    if len(value) != len(bands):
        raise ValueError(
            f'{name} must have one value per band, got {len(value)} values for the '
            f'{len(bands)} bands {tuple(bands)}'
        )
    result = torch.tensor([float(number) for number in value])
    if not torch.isfinite(result).all() or (name == 'std' and (result <= 0).any()):
        rule = 'positive numbers' if name == 'std' else 'finite numbers'
        raise ValueError(f'{name} must be {rule}, got {list(value)}')
    return result


def usable(samples: Iterable[Mapping[str, Any]], where: object) -> Iterator[Tensor]:
    """Yield the images of the usable samples of a data set, each of shape (C, H, W).

    Raises:
        ValueError: After the last sample, if all were skipped.
    """
    found, skipped = False, []
    for sample in samples:
        if 'image' in sample:
            found = True
            yield sample['image']
        else:
            skipped.append(sample['skipped'])
    if skipped and not found:
        raise ValueError(
            f'none of the {len(skipped)} images checked in {where} can be used (first: {skipped[0]}); repair '
            'or remove them'
        )


def estimate(images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Estimate the mean and standard deviation of each band over images, each of shape (C, H, W).

    Returns:
        Both in units of the images, float32, shape (C,). A constant band gets a standard deviation of 1,
        which normalizes it to zero.

    Raises:
        ValueError: If there is no image.
    """
    count, total, square = 0, torch.zeros(1).double(), torch.zeros(1).double()
    for image in images:
        pixels = image.double().flatten(1)
        count += pixels.shape[1]
        total, square = total + pixels.sum(1), square + pixels.square().sum(1)
    if count == 0:
        raise ValueError(
            "'auto' for mean or std needs at least one readable tile, but none of the tiles checked can "
            'be used; repair the files, or set mean and std'
        )
    mean = total / count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    std[std < 1e-6 * mean.abs().clamp(min=1e-6)] = 1
    return mean.float(), std.float()
