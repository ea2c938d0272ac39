"""Normalization of the images that a backbone was trained on."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

#: Ratio of pixel values above which units are taken to differ, such as 0 to 255 and 0 to 10,000.
OTHER_UNITS = 16


@dataclass(frozen=True)
class Normalization:
    """Conversion of file pixels to a backbone's inputs: (x - mean) / std."""

    mean: tuple[float, ...]  # per band, in file units: the value mapped to 0
    std: tuple[float, ...]  # per band, in file units: the length mapped to 1
    clip: bool = False  # clip results to [0, 1], as SatMAE does; `mean` is then the start of the range
    value_range: tuple[float, float] | None = None  # lowest and highest pixel value seen, to detect units

    def __post_init__(self) -> None:
        """Check the values."""
        numbers = (*self.mean, *self.std, *(self.value_range or ()))
        if not self.mean or len(self.mean) != len(self.std) or not all(math.isfinite(x) for x in numbers):
            raise ValueError(f'mean and std must be finite, one value per band, got {self.mean}, {self.std}')
        if min(self.std) <= 0 or type(self.clip) is not bool or len(self.value_range or (0, 1)) != 2:
            raise ValueError(
                'std must be positive, clip true or false, and value_range a pair, got '
                f'{self.std}, {self.clip!r}, {self.value_range}'
            )

    @classmethod
    def read(cls, fields: Any, bands: Sequence[str]) -> Self:
        """Read the fields of a file header for these bands; raise ValueError if they do not fit."""
        try:
            values: dict[str, Any] = {
                k: tuple(map(float, v)) if isinstance(v, list) else v for k, v in fields.items()
            }
            found = cls(**values)
            if len(found.mean) != len(bands):
                raise ValueError(f'{len(found.mean)} values for {len(bands)} bands')
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f'normalization does not match {len(bands)} bands ({error})') from error
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def agrees(self, other: 'Normalization') -> bool:
        """Return whether both agree to within a hundredth of a standard deviation."""
        close = (
            abs(a - b) <= 0.01 * s and abs(s - t) <= 0.01 * s
            for a, b, s, t in zip(self.mean, other.mean, self.std, other.std, strict=True)
        )
        return self.clip == other.clip and all(close)

    def other_units(self, value_range: tuple[float, float] | None) -> bool:
        """Return whether pixels in this range have different units from these statistics."""
        if self.value_range is None or value_range is None:
            return False
        mine, theirs = (max(abs(x) for x in pair) for pair in (self.value_range, value_range))
        return max(mine, theirs) > OTHER_UNITS * min(mine, theirs) > 0


def describe(normalization: Normalization, bands: Sequence[str]) -> str:
    """Format mean and standard deviation by band for messages; `bands` are the band names."""
    rows = zip(bands, normalization.mean, normalization.std, strict=True)
    shown = ', '.join(f'{band} {mean:.4g} ± {std:.4g}' for band, mean, std in rows)
    return f'{shown}, clipped to [0, 1]' if normalization.clip else shown
