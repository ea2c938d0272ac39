"""Continued pre-training simpler than ExPLoRA's objectives, for comparison."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from lightly.loss import LeJEPALoss
from torch import Tensor, nn

from explora_geo.bands import RGB
from explora_geo.models.vit import ViT
from explora_geo.objectives import DINOv2, Objective
from explora_geo.objectives.base import mean_patch
from explora_geo.objectives.short_runs import SHORT_VIEWS
from explora_geo.transforms.multicrop import MultiCrop, ViewsConfig


def _crops(backbone: ViT, local: int) -> MultiCrop:
    """Return the crops of D's short runs with *local* local crops."""
    patch = backbone.patch_embed.patch_size
    views = {**SHORT_VIEWS, 'blur': (0.5, 0.1, 0.3), 'vertical_flip': True, 'quarter_turns': True}
    side = round(0.75 * backbone.patch_embed.img_size / patch) * patch
    return MultiCrop(ViewsConfig(**{**views, 'num_local': local}).sized(side, patch), RGB)


class _Rival(Objective):
    """Base class of objectives on the mean patch, which probes read, with crops smaller than images."""

    backbone_options = DINOv2.backbone_options

    pool = staticmethod(mean_patch)


class Diet(_Rival):
    """Classify every image of an archive as its own class by a linear layer, without teacher or head."""

    def __init__(self, backbone: ViT, images: int, smoothing: float = 0.8) -> None:
        """Initialize a Diet objective for an archive of *images* images."""
        super().__init__(backbone)
        self.crops, self.smoothing = _crops(backbone, 0), smoothing
        self.layer = nn.Linear(backbone.embed_dim, images)

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Return the cross-entropy of two crops of each image; `place` is its index in the archive."""
        found = self.pool(self.backbone(self.crops(batch['image'])[0]))
        wanted = batch['place'].repeat(2)
        return {'loss': F.cross_entropy(self.layer(found).float(), wanted, label_smoothing=self.smoothing)}


class LeJEPA(_Rival):
    """Pull crops of an image together while keeping projections Gaussian, without a teacher."""

    def __init__(self, backbone: ViT, width: int = 64, local: int = 4) -> None:
        """Initialize a LeJEPA objective with a projection of *width*."""
        super().__init__(backbone)
        self.crops, self.layer = _crops(backbone, local), nn.Linear(backbone.embed_dim, width)
        self.loss = LeJEPALoss()

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Return the distance between crops and the deviation from a Gaussian."""
        images = len(batch['image'])
        parts = [self.layer(self.pool(self.backbone(crops))) for crops in self.crops(batch['image'])]
        far, near = (part.float().unflatten(0, (-1, images)) for part in parts)
        with torch.autocast(far.device.type, enabled=False):
            return {'loss': self.loss(global_proj=far, local_proj=near)}


RIVALS: dict[str, type[Objective]] = {kind.__name__: kind for kind in (Diet, LeJEPA)}
