"""Schedules by optimizer step, and durations whose option names state their unit."""

import math
import warnings
from dataclasses import dataclass
from typing import NamedTuple

from lightly.utils.scheduler import cosine_schedule

_UNITS = ('steps', 'epochs', 'fraction')


class Length(NamedTuple):
    """Length of a training phase.

    Attributes:
        name: Option that sets it, such as `warmup_steps`.
        value: Optimizer steps, passes over the data, or a share of the run, according to the suffix.
    """

    name: str
    value: float

    @classmethod
    def of(cls, config: object, phase: str, default: 'Length') -> 'Length':
        """Read `{phase}_steps`, `{phase}_epochs` or `{phase}_fraction` from a configuration.

        Args:
            config: Object with these three attributes, at most one of them not None.
            phase: Name of the phase, such as `warmup`.
            default: Length if none is given.

        Raises:
            ValueError: If several are given, or the value is out of range.
        """
        names = [f'{phase}_{unit}' for unit in _UNITS]
        given = [cls(name, value) for name in names if (value := getattr(config, name)) is not None]
        if len(given) > 1:
            raise ValueError(
                f'{" and ".join(length.name for length in given)} set the same length: use only one'
            )
        for name, value in given:
            if not 0 <= value < math.inf:
                raise ValueError(f'{name} must be finite and not negative, got {value}')
            if name.endswith('_fraction') and value > 1:
                raise ValueError(
                    f'{name} (a share of the run) must be at most 1, got {value}: use {phase}_steps'
                )
        return given[0] if given else default


def rename_length(phase: str, value: float, group: str = '') -> dict[str, float | None]:
    """Return the options that replace a length without a unit, and warn of the deprecation.

    Args:
        phase: Name of the phase and of the old option, a share of the run below 1, else epochs.
        value: Value of the old option.
        group: Prefix, ending in a dot, of the configuration with the new options, if it differs.

    Returns:
        The options for all units, one of them with the value.
    """
    unit = 'fraction' if value < 1 else 'epochs'
    warnings.warn(
        f'{phase}: {value:g} is deprecated, use {group}{phase}_{unit}: {value:g} (or {group}{phase}_steps)',
        FutureWarning,
        stacklevel=4,
    )
    return {f'{phase}_{u}': value if u == unit else None for u in _UNITS}


class TrainingLength(NamedTuple):
    """Length of a training run.

    Attributes:
        total: Optimizer steps of the whole run.
        epoch: Optimizer steps per epoch; infinite for data without a length.
        batch: Images per optimizer step: batch size x accumulation x devices.
    """

    total: int = 1
    epoch: float = 1.0
    batch: int = 1

    def steps(self, length: Length) -> int:
        """Return the optimizer steps of a phase, possibly more than the run has.

        Raises:
            ValueError: If the phase is given in epochs but epochs of the data have no end.
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
                f'{length.name} is {length.value:g}, but epochs of this data have no end: use {name}_steps'
            )
        return int(length.value * self.epoch)

    def check(self, length: Length, outcome: str) -> None:
        """Warn if a phase does not end before the run does.

        Args:
            length: Length of the phase.
            outcome: Consequence to name in the warning.
        """
        steps = self.steps(length)
        if steps >= self.total > 1:
            phase = length.name.rpartition('_')[0]
            warnings.warn(
                f'{length.name} {length.value:g} lasts {steps:,} steps and the run has {self.total:,}: '
                f'{outcome}; use {phase}_fraction for a share of the run',
                UserWarning,
                stacklevel=3,
            )

    def cosine(self, step: int, start: float, end: float) -> float:
        """Return the value at a step on a half cosine from `start` to `end` over the run."""
        return float(cosine_schedule(min(step, self.total), self.total, start, end))

    def linear_warmup(self, step: int, start: float, end: float, length: Length) -> float:
        """Return the value at a step on a line from `start` to `end` over a phase, then `end`."""
        steps = self.steps(length)
        return end if step >= steps else start + (end - start) * step / steps


@dataclass(frozen=True)
class PhaseConfig:
    """Initial phases in which some parts do not train, each given in one unit.

    Attributes:
        freeze_last_layer_steps: Optimizer steps with frozen prototypes (DINOv2: 1,250).
        freeze_last_layer_epochs: The same in passes over the data.
        freeze_last_layer_fraction: The same as a share of the run; 0.01 if none is given.
        head_warmup_steps: Optimizer steps in which only the heads train, as random heads would harm the
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
        """Length of the phase with frozen prototypes."""
        return Length.of(self, 'freeze_last_layer', Length('freeze_last_layer_fraction', 0.01))

    @property
    def head_warmup(self) -> Length:
        """Length of the phase in which only the heads train."""
        return Length.of(self, 'head_warmup', Length('head_warmup_fraction', 0.05))
