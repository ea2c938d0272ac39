"""Teacher that copies only trainable tensors and shares frozen ones with the student."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from explora_geo.objectives.schedules import Length, rename_length


@dataclass(frozen=True)
class TeacherConfig:
    """Momentum and target sharpness of the teacher.

    Attributes:
        momentum: Initial momentum, which rises to 1 along a cosine. If None, the teacher averages over a
            twentieth of the run: 0.95 for 400 steps, at most DINOv2's 0.992.
        temperature: Initial temperature of the targets.
        final_temperature: Temperature after its warm-up.
        temperature_warmup_steps: Length of that warm-up in optimizer steps.
        temperature_warmup_epochs: The same in passes over the data.
        temperature_warmup_fraction: The same as a share of the run; 0.3 if none is given.
        centering: `centering` with a running mean, or `sinkhorn` for Sinkhorn-Knopp on each batch.
        center_momentum: Momentum of the running mean.
        temperature_warmup: Deprecated: a share of the run if below 1, else epochs.
    """

    momentum: float | None = None
    temperature: float = 0.04
    final_temperature: float = 0.07
    centering: Literal['centering', 'sinkhorn'] = 'centering'
    center_momentum: float = 0.9
    temperature_warmup_steps: int | None = None
    temperature_warmup_epochs: float | None = None
    temperature_warmup_fraction: float | None = None
    temperature_warmup: float | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if not 0 <= (self.momentum or 0) <= 1 or not 0 <= self.center_momentum < 1:
            raise ValueError(
                f'momentum must be in [0, 1] and center_momentum in [0, 1), got {self.momentum} and '
                f'{self.center_momentum}'
            )
        if not 0 < self.temperature <= self.final_temperature:
            raise ValueError(
                'temperature must be positive and at most final_temperature, got '
                f'{self.temperature} and {self.final_temperature}'
            )
        if self.temperature_warmup is not None:
            for name, value in rename_length('temperature_warmup', self.temperature_warmup).items():
                object.__setattr__(self, name, getattr(self, name) if value is None else value)
            object.__setattr__(self, 'temperature_warmup', None)
        _ = self.warmup_length

    @property
    def warmup_length(self) -> Length:
        """Length of the temperature warm-up."""
        return Length.of(self, 'temperature_warmup', Length('temperature_warmup_fraction', 0.3))

    def momentum_of(self, total: int) -> float:
        """Return the initial momentum of a run of `total` optimizer steps."""
        if self.momentum is not None:
            return self.momentum
        return min(0.992, max(0.9, 1 - 20 / total))


class Teacher(nn.Module):
    """Running average of a student that shares the student's frozen tensors.

    Its state dict omits the shared tensors, so a checkpoint stores them only once.
    """

    def __init__(self, student: nn.ModuleDict) -> None:
        """Copy the trainable tensors of a student and share the rest.

        Args:
            student: Modules by name; the tensors that train now are the ones to average.
        """
        super().__init__()
        frozen = {id(p): p for p in student.parameters() if not p.requires_grad}
        # deepcopy reuses the objects in its memo instead of copying them.
        self.parts: nn.ModuleDict = copy.deepcopy(student, dict(frozen))
        self.parts.requires_grad_(False)
        self.shared = frozenset(
            n for n, p in self.named_parameters(remove_duplicate=False) if id(p) in frozen
        )
        self.register_state_dict_post_hook(_leave_shared_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_shared_in)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, student: nn.ModuleDict, momentum: float) -> None:
        """Move the teacher towards the student.

        Args:
            student: Student of the same layout.
            momentum: Share of the teacher to keep, in [0, 1].
        """
        if momentum == 1:
            return
        for mine, theirs in zip(self.parts.parameters(), student.parameters(), strict=True):
            if mine is not theirs:
                mine.lerp_(theirs, 1 - momentum)


def _leave_shared_out(module: Teacher, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in module.shared:
        state.pop(f'{prefix}{name}', None)


def _fill_shared_in(module: Teacher, state: dict[str, Any], prefix: str, *unused: Any) -> None:
    # Loading the student fills the same memory, before or after.
    parameters: Mapping[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for name in module.shared:
        state[f'{prefix}{name}'] = parameters[name].detach()
