"""The contract between an objective and the task that trains it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from explora_geo.models.vit import Features, ViT


class Objective(nn.Module, ABC):
    """A self-supervised loss on one adapted backbone, with the parts that only pre-training needs.

    Attributes:
        backbone: The ViT that is trained and later kept.
        letter: How the paper's notation names weights of this objective (`M`, `D`).
    """

    letter: str = ''

    def __init__(self, backbone: ViT) -> None:
        """Initialize an Objective around a backbone that carries its weights and adaptation."""
        super().__init__()
        self.backbone = backbone

    def load_pretrained(self, parts: Mapping[str, Tensor]) -> str:
        """Take the objective's own pre-trained parts (a decoder, heads) from a checkpoint.

        Args:
            parts: Tensors of the checkpoint that are not the backbone's.

        Returns:
            One sentence that says what was taken.
        """
        return 'the objective has no pre-trained parts'

    @abstractmethod
    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            batch: Sample dict with `image`, shape (B, C, H, W), and for temporal tokenizers
                `timestamps`, shape (B, T, 3); labels are never read.
            step: Optimiser steps done so far, for schedules.

        Returns:
            Scalar losses by name; their sum is minimised.
        """

    @staticmethod
    def pool(features: Features) -> Tensor:
        """One vector per image that suits the objective: the class token, shape (B, D)."""
        return features.cls

    def extra_state(self) -> dict[str, Tensor]:
        """The objective's own tensors that `load_pretrained` reads back."""
        return {}

    def pictures(self, image: Tensor, timestamps: Tensor | None = None) -> dict[str, Tensor]:
        """Images that show what the objective does, by title, each of the input's shape; or none."""
        return {}

    def after_step(self, step: int) -> None:
        """Act after an optimiser step, for instance average a teacher; nothing by default."""
