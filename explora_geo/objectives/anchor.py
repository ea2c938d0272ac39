"""Keep what a strong source knows and teach it orientation: an objective of ours, not the paper's."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from explora_geo.models.vit import Features, ViT
from explora_geo.objectives.base import Objective
from explora_geo.objectives.teacher import Teacher
from explora_geo.transforms.orientation import TURNS, orientations, turn, turn_back


class Anchor(Objective):
    """Predict from one orientation of an image what the source sees on average in all of them.

    The target is the mean of the frozen source's patch features over the orientations of an image, turned
    back; the student sees the image in one of eight orientations. There are no heads, so a strong source
    has nothing to unlearn. The source costs no second model: it shares every tensor that does not train.
    It is not part of ExPLoRA (Khanna et al. 2025), whose objectives are `DINOv2` (D) and `MAE` (M).
    """

    def __init__(
        self,
        backbone: ViT,
        turns: int = 4,
        patch_weight: float = 0.5,
        centered_weight: float = 2.0,
        mean_weight: float = 2.0,
        center_momentum: float = 0.9,
    ) -> None:
        """Initialize an Anchor objective.

        Args:
            backbone: Student, with the source's weights; LoRA adds nothing yet.
            turns: Orientations that the target averages: 1, 4 quarter turns, or 8 with mirror images.
            patch_weight: Weight of smooth L1 between patch features, over their deviation.
            centered_weight: Weight of 1 - cosine of the mean patch features, minus the archive's mean.
            mean_weight: Weight of 1 - cosine of the mean patch features as they are.
            center_momentum: Momentum of the running mean and deviation of the source's features.

        Raises:
            ValueError: If `turns` is none of 1, 4, 8, a weight is negative, or all are zero.
        """
        super().__init__(backbone)
        weights = (patch_weight, centered_weight, mean_weight)
        if turns not in TURNS:
            raise ValueError(f'turns must be 1, 4 or 8, got {turns}')
        if min(weights) < 0 or not any(weights):
            raise ValueError(
                'patch_weight, centered_weight and mean_weight must be at least 0 and one of them positive, '
                f'got {", ".join(map(str, weights))}'
            )
        self.turns = turns
        self.patch_weight, self.centered_weight, self.mean_weight = weights
        self.center_momentum = center_momentum
        self.source = Teacher(nn.ModuleDict({'backbone': backbone}))
        self.center: Tensor
        self.deviation: Tensor
        self.register_buffer('center', torch.zeros(backbone.embed_dim))
        self.register_buffer('deviation', torch.zeros(backbone.embed_dim))

    @staticmethod
    def pool(features: Features) -> Tensor:
        """Mean patch token: the loss moves patches alone, shape (B, D)."""
        return features.patches.flatten(1, -2).mean(dim=1)

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Weighted losses of a batch; see `Objective.forward`."""
        image, times = batch['image'], batch.get('timestamps')
        target = self.targets(image, times)
        self._follow(target)
        found, wanted = self._student(image, target, times)
        mine, theirs = found.mean((1, 3, 4)), wanted.mean((1, 3, 4))  # (B,D)
        cosine = F.cosine_similarity(mine, theirs, dim=1).mean()
        centered = F.cosine_similarity(mine - self.center, theirs - self.center, dim=1).mean()
        scale = self.deviation.clamp(min=1e-6)[:, None, None]
        self.metrics = {'cosine': cosine.detach(), 'centered_cosine': centered.detach()}
        if self.training:
            self.watched = mine.detach()
        return {
            'loss_patch': self.patch_weight * F.smooth_l1_loss(found / scale, wanted / scale),
            'loss_centered': self.centered_weight * (1 - centered),
            'loss_mean': self.mean_weight * (1 - cosine),
        }

    def _student(self, image: Tensor, target: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
        """Features of images in orientations drawn for each, and the targets turned alike."""
        allowed = orientations(8, *image.shape[-2:])
        drawn = torch.randint(len(allowed), (len(image),)).tolist()
        turned, wanted = torch.empty_like(image), torch.empty_like(target)
        for choice in set(drawn):
            # Rows are found on the CPU: a boolean index would wait for the device.
            rows = torch.tensor([i for i, other in enumerate(drawn) if other == choice], device=image.device)
            turned[rows] = turn(image[rows], allowed[choice])
            wanted[rows] = turn(target[rows], allowed[choice])
        return self._map(self.backbone, turned, times), wanted

    @torch.no_grad()
    def targets(self, image: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Patch features of the source, averaged over the orientations of each image.

        Args:
            image: Normalized image, shape (B, C, H, W), or as the tokenizer says.
            timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).

        Returns:
            Shape (B, S, D, h, w) for h x w patches.
        """
        source: Any = self.source.parts.eval()['backbone']
        kinds = orientations(self.turns, *image.shape[-2:])
        return torch.stack([turn_back(self._map(source, turn(image, k), timestamps), k) for k in kinds]).mean(
            0
        )

    @staticmethod
    def _map(vit: ViT, image: Tensor, times: Tensor | None) -> Tensor:
        patches = vit(image, timestamps=times).patches.float()
        return patches.transpose(2, 3).unflatten(3, vit.patch_embed.grid(image))  # (B,S,L,D) -> (B,S,D,h,w)

    @torch.no_grad()
    def _follow(self, target: Tensor) -> None:
        """Follow mean and deviation of the source's features; the first batch sets them."""
        known = self.deviation.any()
        share = torch.where(known, 1 - self.center_momentum if self.training else 0.0, 1.0)
        usable = torch.isfinite(target).all()  # else they stay, also for a checkpoint
        for average, now in ((self.center, target.mean), (self.deviation, target.std)):
            average.copy_(torch.where(usable, average.lerp(now((0, 1, 3, 4)), share), average))
