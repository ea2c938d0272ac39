"""Schedules of an objective by optimizer step, and lengths that carry their unit in the name."""

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

from lightly.utils.scheduler import cosine_schedule

_UNITS = ('steps', 'epochs', 'fraction')


class Length(NamedTuple):
    """How long a phase of training lasts.

    Attributes:
        name: Option that states it, such as `warmup_steps`.
        value: Optimizer steps, passes over the data, or a share of the run, as the end of the name says.
    """

    name: str
    value: float

    @classmethod
    def of(cls, config: object, phase: str, default: 'Length') -> 'Length':
        """Read `{phase}_steps`, `{phase}_epochs` or `{phase}_fraction` of a configuration.

        Args:
            config: Object with these three attributes, of which at most one is not None.
            phase: What lasts, such as `warmup`.
            default: Length if none is given.

        Raises:
            ValueError: If several are given, or the value is out of range.
        """
        names = [f'{phase}_{unit}' for unit in _UNITS]
        given = [cls(name, value) for name in names if (value := getattr(config, name)) is not None]
        if len(given) > 1:
            raise ValueError(
                f'{" and ".join(length.name for length in given)} state one length twice: give only one'
            )
        for name, value in given:
            if not 0 <= value < math.inf:
                raise ValueError(f'{name} must not be negative, got {value}')
            if name.endswith('_fraction') and value > 1:
                raise ValueError(f'{name} is a share of the run, at most 1, got {value}: give {phase}_steps')
        return given[0] if given else default


def rename_length(phase: str, value: float, group: str = '') -> dict[str, float | None]:
    """The options that take the place of a length without a unit, with a warning.

    Args:
        phase: What lasts, which is also the old option: a share of the run below 1, else epochs.
        value: Its value.
        group: Configuration that holds the new options, if it is another one, with a dot.

    Returns:
        The options in all units, of which one has the value.
    """
    unit = 'fraction' if value < 1 else 'epochs'
    warnings.warn(
        f'{phase}: {value:g} is deprecated, write {group}{phase}_{unit}: {value:g} (or {group}{phase}_steps)',
        FutureWarning,
        stacklevel=4,
    )
    return {f'{phase}_{u}': value if u == unit else None for u in _UNITS}


class TrainingLength(NamedTuple):
    """How long training is.

    Attributes:
        total: Optimizer steps of the whole run.
        epoch: Optimizer steps per epoch; infinite for data without a length.
        batch: Images per optimizer step: batch size x accumulation x devices.
    """

    total: int = 1
    epoch: float = 1.0
    batch: int = 1

    def steps(self, length: Length) -> int:
        """Optimizer steps of a phase, which may be more than the run has.

        Raises:
            ValueError: If it is given in epochs, which have no end.
        """
        if length.name.endswith('_steps'):
            return int(length.value)
        if length.name.endswith('_fraction'):
            return int(length.value * self.total)
        if not length.value:
            return 0
        if math.isinf(self.epoch):
            name = length.name.removesuffix('_epochs')
            raise ValueError(
                f'{length.name} is {length.value:g}, but epochs of these data have no end: give {name}_steps'
            )
        return int(length.value * self.epoch)

    def check(self, length: Length, outcome: str) -> None:
        """Warn of a phase that is not over when the run ends.

        Args:
            length: The phase.
            outcome: What the run misses.
        """
        steps = self.steps(length)
        if steps >= self.total > 1:
            phase = length.name.rpartition('_')[0]
            warnings.warn(
                f'{length.name} {length.value:g} lasts for {steps:,} steps and the run for {self.total:,}: '
                f'{outcome}; give {phase}_fraction for a share of the run',
                UserWarning,
                stacklevel=3,
            )

    def cosine(self, step: int, start: float, end: float) -> float:
        """Half a cosine from `start` to `end` over the run."""
        return float(cosine_schedule(min(step, self.total), self.total, start, end))

    def linear_warmup(self, step: int, start: float, end: float, length: Length) -> float:
        """Linear from `start` to `end` over a phase, then `end`."""
        steps = self.steps(length)
        return end if step >= steps else start + (end - start) * step / steps


@dataclass(frozen=True)
class PhaseConfig:
    """What does not train at first; each phase is given in one unit.

    Attributes:
        freeze_last_layer_steps: Optimizer steps in which the prototypes stay as they are (DINOv2: 1,250).
        freeze_last_layer_epochs: The same in passes over the data.
        freeze_last_layer_fraction: The same as a share of the run; 0.01 if none is given.
        head_warmup_steps: Optimizer steps in which the heads train alone: random heads would harm the
            backbone (DINOv2: 0).
        head_warmup_epochs: The same in passes over the data.
        head_warmup_fraction: The same as a share of the run; 0.05 if none is given.
    """

    freeze_last_layer_steps: int | None = None
    freeze_last_layer_epochs: float | None = None
    freeze_last_layer_fraction: float | None = None
    head_warmup_steps: int | None = None
    head_warmup_epochs: float | None = None
    head_warmup_fraction: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        _ = self.freeze_last_layer, self.head_warmup

    @property
    def freeze_last_layer(self) -> Length:
        """How long the prototypes stay as they are."""
        return Length.of(self, 'freeze_last_layer', Length('freeze_last_layer_fraction', 0.01))

    @property
    def head_warmup(self) -> Length:
        """How long the heads train alone."""
        return Length.of(self, 'head_warmup', Length('head_warmup_fraction', 0.05))
