"""A teacher that costs only what trains: frozen tensors are the student's own."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Teacher(nn.Module):
    """Running average of a student, which shares every tensor of the student that does not train.

    Its state dict leaves the shared tensors out, so that a checkpoint holds them once.
    """

    def __init__(self, student: nn.ModuleDict) -> None:
        """Copy what trains of a student, and share the rest.

        Args:
            student: Modules by name; what trains now is what will be averaged.
        """
        super().__init__()
        frozen = {id(p): p for p in student.parameters() if not p.requires_grad}
        # deepcopy takes what its memo holds instead of copying it.
        self.parts: nn.ModuleDict = copy.deepcopy(student, dict(frozen))
        self.parts.requires_grad_(False)
        self.shared = frozenset(
            n for n, p in self.named_parameters(remove_duplicate=False) if id(p) in frozen
        )
        self.register_state_dict_post_hook(_leave_shared_out)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_fill_shared_in)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def update(self, student: nn.ModuleDict, momentum: float) -> None:
        """Move towards the student.

        Args:
            student: The student of the same layout.
            momentum: Share of the teacher that stays, in [0, 1].
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
    # The student's tensors are read into the same memory, before or after.
    parameters: Mapping[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for name in module.shared:
        state[f'{prefix}{name}'] = parameters[name].detach()
