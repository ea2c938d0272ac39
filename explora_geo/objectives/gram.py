"""Preserve the source's features: Gram anchoring of patches (DINOv3), and class-token preservation."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explora_geo.models.vit import Features
from explora_geo.objectives.schedules import Length, TrainingLength
from explora_geo.objectives.teacher import Teacher


@dataclass(frozen=True)
class GramConfig:
    """Losses that keep a run close to its source, in addition to its own.

    Attributes:
        weight: Weight of the Gram loss: the squared difference between student and source in the cosines
            of all patch pairs of an image (Siméoni et al. 2025, section 4). Features may still rotate, but
            dense ones do not blur in long runs.
        start_steps: Optimizer steps before the Gram loss starts.
        start_epochs: The same in passes over the data.
        start_fraction: The same as a share of the run; 0.5 if none is given.
        preserve_weight: Weight of 1 - cosine between the class tokens of student and source, from the first
            step on; 0 for none. Ours, not DINOv3's.
        every: Steps between comparisons of one global crop, and the factor on their losses; each comparison
            costs a forward pass of the source.
    """

    weight: float = 1.0
    start_steps: int | None = None
    start_epochs: float | None = None
    start_fraction: float | None = None
    preserve_weight: float = 0.0
    every: int = 2

    def __post_init__(self) -> None:
        """Check the values."""
        if min(self.weight, self.preserve_weight) < 0 or not (self.weight or self.preserve_weight):
            raise ValueError(
                'weight and preserve_weight must not be negative, and at least one must be positive, got '
                f'{self.weight} and {self.preserve_weight}'
            )
        if self.every < 1:
            raise ValueError(f'every must be at least 1, got {self.every}')
        _ = self.start

    @property
    def start(self) -> Length:
        """Start of the Gram loss."""
        return Length.of(self, 'start', Length('start_fraction', 0.5))


class GramLoss(nn.Module):
    """Distance between a student and its source, which share every frozen tensor."""

    def __init__(self, source: Teacher, config: GramConfig) -> None:
        """Initialize a GramLoss.

        Args:
            source: The backbone at the start of the run, under the name `backbone`.
            config: Weights and timing of the losses.
        """
        super().__init__()
        self.config = config
        self.source = source

    def forward(
        self, crops: Tensor, features: Features, times: Tensor | None, step: int, length: TrainingLength
    ) -> dict[str, Tensor]:
        """Compute weighted losses by name; none at steps without a comparison.

        Args:
            crops: Both global crops of B images, shape (2·B, C, H, W), or as the tokenizer expects.
            features: The student's features of these crops.
            times: Acquisition times of the images for temporal tokenizers, shape (B, T, 3).
            step: Optimizer steps done so far.
            length: Length of training.
        """
        config = self.config
        late = config.weight > 0 and step >= length.steps(config.start)
        if step % config.every or not (late or config.preserve_weight):
            return {}
        which = step // config.every % 2
        with torch.no_grad():
            kept: Features = self.source.parts.eval()['backbone'](crops.chunk(2)[which], timestamps=times)
        cls, patches = (x.chunk(2)[which].float() for x in features[:2])
        losses = {}
        with torch.autocast(crops.device.type, enabled=False):
            if late:
                mine, theirs = (_cosines(x.flatten(1, -2)) for x in (patches, kept.patches.float()))
                losses['loss_gram'] = config.every * config.weight * F.mse_loss(mine, theirs)
            if config.preserve_weight:
                distance = 1 - F.cosine_similarity(cls, kept.cls.float(), dim=1).mean()
                losses['loss_preserve'] = config.every * config.preserve_weight * distance
        return losses


def _cosines(patches: Tensor) -> Tensor:
    unit = F.normalize(patches, dim=-1)
    return unit @ unit.mT
