"""Draws of labeled images: label budgets (all, a share, a number per class) and validation parts."""

import re
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_BUDGET = re.compile(r'(?P<share>\d+(?:\.\d+)?)\s*%|(?P<count>\d+)|all')


@dataclass(frozen=True)
class Budget:
    """How many training labels are used.

    Attributes:
        share: Share of each class in (0, 1]; 1 is all labels.
        per_class: Images of each class, instead of a share.
    """

    share: float = 1.0
    per_class: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `all`, a share such as `1%`, or a number per class such as `10`.

        Raises:
            ValueError: If the text is none of these.
        """
        match = _BUDGET.fullmatch(text.strip())
        share = float(match['share']) / 100 if match and match['share'] else 1.0
        count = int(match['count']) if match and match['count'] else None
        if match is None or not 0 < share <= 1 or count == 0:
            raise ValueError(
                f'cannot read the label budget {text!r}: give all, a share such as 1%, or a number per class '
                'such as 10'
            )
        return cls(share, count)

    def __str__(self) -> str:
        """Text that `parse` reads back."""
        if self.per_class is not None:
            return str(self.per_class)
        return 'all' if self.full else f'{100 * self.share:g}%'

    @property
    def full(self) -> bool:
        """Whether every label is used, so that seeds draw the same."""
        return self.per_class is None and self.share == 1

    @property
    def partition(self) -> str:
        """torchgeo-bench's name of the part of the training set."""
        if self.per_class is not None:
            return f'{self.per_class}_per_class'
        digits = '.2f' if round(self.share, 2) == self.share else 'g'  # shares apart have names apart
        return 'default' if self.full else f'{self.share:{digits}}x_train'

    def draw(self, label: Tensor, seed: int) -> Tensor:
        """Indices of a random draw with the same share, or number, of each class, at least one.

        Args:
            label: Classes, shape (N,).
            seed: Seed of the draw.

        Returns:
            Indices in ascending order.
        """
        generator = torch.Generator().manual_seed(seed)
        drawn = []
        for c in label.unique():
            members = (label == c).nonzero().flatten()
            wanted = round(self.share * len(members)) if self.per_class is None else self.per_class
            order = torch.randperm(len(members), generator=generator)
            drawn.append(members[order[: max(wanted, 1)]])
        return torch.cat(drawn).sort().values


def hold_out(label: Tensor) -> tuple[Tensor, Tensor]:
    """Part images into those to train on and a tenth of each class, evenly spaced, to validate on.

    Args:
        label: Classes, shape (N,).

    Returns:
        Indices of both parts in ascending order; of every class at least one image is held out.
    """
    held = torch.zeros(len(label), dtype=torch.bool)
    for c in label.unique():
        members = (label == c).nonzero().flatten()
        held[members[5::10] if len(members) > 5 else members[-1:]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()
