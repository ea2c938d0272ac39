"""How the images that a backbone learned from were normalized."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

#: How many times larger pixel values must be for their units to be others, such as 0 to 255 and 0 to 10,000.
OTHER_UNITS = 16


@dataclass(frozen=True)
class Normalization:
    """What turns the pixels of files into the numbers that a backbone reads: (x - mean) / std."""

    mean: tuple[float, ...]  # value of each band that becomes 0, in units of the files
    std: tuple[float, ...]  # length in those units that becomes 1, one per band
    clip: bool = False  # cut results off to [0, 1], as SatMAE's; then `mean` is where its range starts
    value_range: tuple[float, float] | None = None  # lowest and highest pixel value seen: tells other units

    def __post_init__(self) -> None:
        """Check the values."""
        numbers = (*self.mean, *self.std, *(self.value_range or ()))
        if not self.mean or len(self.mean) != len(self.std) or not all(math.isfinite(x) for x in numbers):
            raise ValueError(f'mean and std must be finite, one each per band, got {self.mean}, {self.std}')
        if min(self.std) <= 0 or type(self.clip) is not bool or len(self.value_range or (0, 1)) != 2:
            raise ValueError(
                'std must be positive, clip true or false, and value_range a pair, got '
                f'{self.std}, {self.clip!r}, {self.value_range}'
            )

    @classmethod
    def read(cls, fields: Any, bands: Sequence[str]) -> Self:
        """Read the fields of a file's header, for these bands; a ValueError if they are anything else."""
        try:
            values: dict[str, Any] = {
                k: tuple(map(float, v)) if isinstance(v, list) else v for k, v in fields.items()
            }
            found = cls(**values)
            if len(found.mean) != len(bands):
                raise ValueError(f'{len(found.mean)} values for {len(bands)} bands')
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f'normalization is none of {len(bands)} bands ({error})') from error
        return found

    def to_dict(self) -> dict[str, Any]:
        """Fields as JSON-ready values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def agrees(self, other: 'Normalization') -> bool:
        """Whether both give nearly the same numbers, to a hundredth of a standard deviation."""
        close = (
            abs(a - b) <= 0.01 * s and abs(s - t) <= 0.01 * s
            for a, b, s, t in zip(self.mean, other.mean, self.std, other.std, strict=True)
        )
        return self.clip == other.clip and all(close)

    def other_units(self, value_range: tuple[float, float] | None) -> bool:
        """Whether pixels of this range have other units than those of these statistics."""
        if self.value_range is None or value_range is None:
            return False
        mine, theirs = (max(abs(x) for x in pair) for pair in (self.value_range, value_range))
        return max(mine, theirs) > OTHER_UNITS * min(mine, theirs) > 0


def describe(normalization: Normalization, bands: Sequence[str]) -> str:
    """Mean and standard deviation by band, for messages; `bands` names its bands."""
    rows = zip(bands, normalization.mean, normalization.std, strict=True)
    shown = ', '.join(f'{band} {mean:.4g} ± {std:.4g}' for band, mean, std in rows)
    return f'{shown}, cut off to [0, 1]' if normalization.clip else shown
