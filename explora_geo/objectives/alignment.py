"""Patch kernel alignment (PaKa, arXiv 2509.05606) over image orientations; not part of the ExPLoRA paper."""

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
    """Alignment of patch relations between a turned, contrast-changed image and a teacher's original.

    The loss is 1 - the centered kernel alignment between student and teacher patch features of an image. It
    prescribes no particular features, so it needs no heads, crops or prototypes, and a step costs less than
    half as much as with `DINOv2`. The teacher is a running average of the student whose momentum rises to 1.
    """

    def __init__(
        self, backbone: ViT, momentum: float = 0.95, contrast: float = 0.3, oriented: bool = False
    ) -> None:
        """Initialize a PatchAlignment objective.

        Args:
            backbone: Student with its weights and adaptation.
            momentum: Initial momentum of the teacher, in [0, 1]; it rises to 1 along a cosine.
            contrast: Largest relative change of contrast about the archive's mean, in [0, 1).
            oriented: Keep images as they are instead of drawing one of eight orientations, for archives where
                orientation carries information.

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
        """Set the number of steps over which the teacher's momentum rises to 1."""
        self.horizon = TrainingLength(max(total, 1), epoch)

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Compute the loss of a batch; see `Objective.forward`."""
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
        # (B,S,D,h,w) -> (B,S·h·w,D): the alignment covers relations between slots too
        mine, theirs = (x.transpose(2, 4).flatten(1, 3).float() for x in (found, wanted))
        with torch.autocast(image.device.type, enabled=False):
            return {'loss_alignment': self.loss(mine, theirs)}

    def after_step(self, step: int) -> None:
        """Update the teacher's running average."""
        momentum = self.horizon.cosine(step, self.momentum, 1.0)
        self.teacher.update(nn.ModuleDict({'backbone': self.backbone}), momentum)
