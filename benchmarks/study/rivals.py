"""Continued pre-training that is simpler than ExPLoRA's objectives, for comparison."""

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
    """The crops of D's short runs, of another number."""
    patch = backbone.patch_embed.patch_size
    views = {**SHORT_VIEWS, 'blur': (0.5, 0.1, 0.3), 'vertical_flip': True, 'quarter_turns': True}
    side = round(0.75 * backbone.patch_embed.img_size / patch) * patch
    return MultiCrop(ViewsConfig(**{**views, 'num_local': local}).sized(side, patch), RGB)


class _Rival(Objective):
    """The mean patch is what probes read; crops are smaller than images."""

    backbone_options = DINOv2.backbone_options

    pool = staticmethod(mean_patch)


class Diet(_Rival):
    """Tell every image of an archive from all others by a linear layer, without teacher or head."""

    def __init__(self, backbone: ViT, images: int, smoothing: float = 0.8) -> None:
        """Initialize a Diet objective for an archive of so many images."""
        super().__init__(backbone)
        self.crops, self.smoothing = _crops(backbone, 0), smoothing
        self.layer = nn.Linear(backbone.embed_dim, images)

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Cross-entropy of two crops of each image; `place` is the image's in the archive."""
        found = self.pool(self.backbone(self.crops(batch['image'])[0]))
        wanted = batch['place'].repeat(2)
        return {'loss': F.cross_entropy(self.layer(found).float(), wanted, label_smoothing=self.smoothing)}


class LeJEPA(_Rival):
    """Pull crops of an image together while their projections stay Gaussian, without a teacher."""

    def __init__(self, backbone: ViT, width: int = 64, local: int = 4) -> None:
        """Initialize a LeJEPA objective whose projection has a width."""
        super().__init__(backbone)
        self.crops, self.layer = _crops(backbone, local), nn.Linear(backbone.embed_dim, width)
        self.loss = LeJEPALoss()

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Distance of crops and deviation from a Gaussian."""
        images = len(batch['image'])
        parts = [self.layer(self.pool(self.backbone(crops))) for crops in self.crops(batch['image'])]
        far, near = (part.float().unflatten(0, (-1, images)) for part in parts)
        with torch.autocast(far.device.type, enabled=False):
            return {'loss': self.loss(global_proj=far, local_proj=near)}


RIVALS: dict[str, type[Objective]] = {kind.__name__: kind for kind in (Diet, LeJEPA)}
