"""Patch kernel alignment (PaKa, arXiv 2509.05606) over the orientations of an image: not the paper's."""

from collections.abc import Mapping
from typing import Any

import torch
from lightly.loss import PatchKernelAlignmentLoss
from torch import Tensor, nn

from explora_geo.models.vit import ViT
from explora_geo.objectives.anchor import feature_map, turned_features
from explora_geo.objectives.base import Objective, mean_patch
from explora_geo.objectives.schedules import TrainingLength
from explora_geo.objectives.teacher import Teacher


class PatchAlignment(Objective):
    """Patches of a turned image with another contrast relate to each other as a teacher's of the image do.

    The loss is 1 - the centered kernel alignment of an image's patch features, student's and teacher's: it
    asks for no features in particular, so there are no heads, no crops and no prototypes, and a step costs
    less than half of one of `DINOv2`. The teacher is a running average of the student, which slows to a halt.
    """

    def __init__(
        self, backbone: ViT, momentum: float = 0.95, contrast: float = 0.3, oriented: bool = False
    ) -> None:
        """Initialize a PatchAlignment objective.

        Args:
            backbone: Student with its weights and adaptation.
            momentum: Share of the teacher that stays at a step, at first, in [0, 1]; it rises to 1 as a
                cosine.
            contrast: Largest change of an image's contrast about the archive's mean, in [0, 1).
            oriented: Leave images as they are, not in one of eight orientations: for archives in which the
                orientation tells something.

        Raises:
            ValueError: If a value is out of range.
        """
        if not (0 <= momentum <= 1 and 0 <= contrast < 1):
            raise ValueError(
                f'momentum must be in [0, 1] and contrast in [0, 1), got {momentum} and {contrast}'
            )
        super().__init__(backbone)
        self.momentum, self.contrast, self.oriented = momentum, contrast, oriented
        self.horizon = TrainingLength()
        self.teacher = Teacher(nn.ModuleDict({'backbone': backbone}))
        self.loss = PatchKernelAlignmentLoss()

    pool = staticmethod(mean_patch)

    def set_schedule(self, total: int, epoch: float) -> None:
        """Set the length of training, over which the teacher comes to a halt."""
        self.horizon = TrainingLength(max(total, 1), epoch)

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """The loss of a batch; see `Objective.forward`."""
        image, times = batch['image'], batch.get('timestamps')
        teacher: Any = self.teacher.parts.eval()['backbone']
        with torch.no_grad():
            wanted = feature_map(teacher, image, times)
        change = self.contrast * (2 * torch.rand(len(image), device=image.device) - 1)
        image = image * (1 + change).view(-1, *[1] * (image.ndim - 1))
        if self.oriented:
            found = feature_map(self.backbone, image, times)
        else:
            found, wanted = turned_features(self.backbone, image, wanted, times)
        if self.training:
            self.watched = found.mean((1, 3, 4)).detach()
        # (B,S,D,h,w) -> (B,S·h·w,D): slots of bands or dates relate to each other, too
        mine, theirs = (x.transpose(2, 4).flatten(1, 3).float() for x in (found, wanted))
        with torch.autocast(image.device.type, enabled=False):
            return {'loss_alignment': self.loss(mine, theirs)}

    def after_step(self, step: int) -> None:
        """Average the teacher."""
        momentum = self.horizon.cosine(step, self.momentum, 1.0)
        self.teacher.update(nn.ModuleDict({'backbone': self.backbone}), momentum)
