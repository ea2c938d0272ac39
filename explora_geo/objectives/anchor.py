"""Adapt a strong source to the orientations and statistics of an archive; ours, not the paper's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from explora_geo.models.readout import average_maps, check_turns, turn, whitening_matrix
from explora_geo.models.vit import ViT
from explora_geo.objectives.base import Objective, mean_patch
from explora_geo.objectives.teacher import Teacher


@dataclass(frozen=True)
class AnchorConfig:
    """Settings of the anchor loss.

    Attributes:
        turns: Orientations averaged in the target: 1, 4 (quarter turns), or 8 (also mirrored).
        oriented: Show the student images as they are instead of in one of eight orientations, for archives
            where orientation carries information. The target then uses one orientation and ignores `turns`.
        whitening: Power of the inverse standard deviation that scales each principal direction of the
            archive's mean patch features: 0 keeps the source's geometry, 1 whitens.
        ridge: Share of the largest standard deviation added to all of them, to keep noise small.
        patch_weight: Weight of smooth L1 between patch features divided by their standard deviation.
        centered_weight: Weight of 1 - cosine of the mean patch features minus the archive's mean.
        mean_weight: Weight of 1 - cosine of the mean patch features.
    """

    turns: int = 4
    whitening: float = 0.5
    ridge: float = 0.02
    patch_weight: float = 0.5
    centered_weight: float = 2.0
    mean_weight: float = 2.0
    oriented: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        weights = (self.patch_weight, self.centered_weight, self.mean_weight)
        if not 0 <= self.whitening <= 1 or self.ridge <= 0:
            raise ValueError(
                f'whitening must be in [0, 1] and ridge positive, got {self.whitening} and {self.ridge}'
            )
        if min(weights) < 0 or not any(weights):
            raise ValueError(
                'patch_weight, centered_weight and mean_weight must not be negative, and at least one must '
                f'be positive, got {", ".join(map(str, weights))}'
            )
        check_turns(self.turns)


class AnchorLoss(nn.Module):
    """Distance between a student and the mean features of its source over all orientations of an image.

    The target averages the frozen source's patch features over the orientations of an image, turned back, and
    whitens them in part by the archive's covariance, which weakens what all tiles share and strengthens what
    sets them apart. The student sees the image in one of eight orientations. The source adds no second model:
    it shares every frozen tensor.

    Attributes:
        metrics: Cosines of the last batch, by name.
    """

    def __init__(self, source: Teacher, config: AnchorConfig) -> None:
        """Initialize an AnchorLoss.

        Args:
            source: The backbone at the start of the run, under the name `backbone`.
            config: Settings of the loss.
        """
        super().__init__()
        self.config = config
        self.source = source
        backbone: Any = source.parts['backbone']
        self.archive = ArchiveStatistics(backbone.embed_dim)
        self.metrics: dict[str, Tensor] = {}

    def forward(self, backbone: ViT, batch: Mapping[str, Any], step: int) -> tuple[dict[str, Tensor], Tensor]:
        """Compute the weighted losses of a batch by name, and the student's mean patch features, (B, D).

        Args:
            backbone: Student.
            batch: Sample dict, as for `Objective.forward`.
            step: Optimizer steps done so far.
        """
        config, image, times = self.config, batch['image'], batch.get('timestamps')
        seen = self.targets(image, times)
        if self.training:
            self.archive.add(seen.mean((1, 3, 4)))
            if config.whitening and step & (step - 1) == 0:  # steps 0, 1, 2, 4, ...: changes shrink
                self.archive.whiten(config.whitening, config.ridge)
        wanted = self.archive.whitened(seen)
        if config.oriented:
            found = feature_map(backbone, image, times)
        else:
            found, wanted = turned_features(backbone, image, wanted, times)
        mine, theirs = found.mean((1, 3, 4)), wanted.mean((1, 3, 4))  # (B,D)
        center = self.archive.mean
        cosine = F.cosine_similarity(mine, theirs, dim=1).mean()
        centered = F.cosine_similarity(mine - center, theirs - center, dim=1).mean()
        scale = wanted.std((0, 1, 3, 4)).clamp(min=1e-6)[:, None, None]
        self.metrics = {'cosine': cosine.detach(), 'centered_cosine': centered.detach()}
        losses = {
            'loss_patch': config.patch_weight * F.smooth_l1_loss(found / scale, wanted / scale),
            'loss_centered': config.centered_weight * (1 - centered),
            'loss_mean': config.mean_weight * (1 - cosine),
        }
        return losses, mine

    @torch.no_grad()
    def targets(self, image: Tensor, timestamps: Tensor | None = None) -> Tensor:
        """Compute the source's features, averaged over the orientations of each image.

        Args:
            image: Normalized image, shape (B, C, H, W), or as the tokenizer expects.
            timestamps: Acquisition times for temporal tokenizers, shape (B, T, 3).

        Returns:
            Patch features, shape (B, S, D, h, w) for h x w patches.
        """
        source: Any = self.source.parts.eval()['backbone']
        turns = 1 if self.config.oriented else self.config.turns
        return average_maps(lambda seen: feature_map(source, seen, timestamps), image, turns)


class Anchor(Objective):
    """Prediction of the source's mean features over all orientations of an image from one (`AnchorLoss`).

    It has no heads, so a strong source has nothing to unlearn. It is not part of ExPLoRA (Khanna et al.
    2025), whose objectives are `DINOv2` (D) and `MAE` (M).
    """

    flat_keys = frozenset(AnchorConfig.__dataclass_fields__)

    def __init__(self, backbone: ViT, **config: Any) -> None:
        """Initialize an Anchor objective.

        Args:
            backbone: Student with the source's weights, whose LoRA updates are still zero.
            **config: Arguments of `AnchorConfig`.

        Raises:
            ValueError: If `AnchorConfig` rejects a value.
        """
        super().__init__(backbone)
        source = Teacher(nn.ModuleDict({'backbone': backbone}))
        self.anchor = AnchorLoss(source, AnchorConfig(**config))

    pool = staticmethod(mean_patch)

    def forward(self, batch: Mapping[str, Any], step: int) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch; see `Objective.forward`."""
        losses, mine = self.anchor(self.backbone, batch, step)
        self.metrics = self.anchor.metrics
        if self.training:
            self.watched = mine.detach()
        return losses


def turned_features(
    backbone: ViT, image: Tensor, target: Tensor, times: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return features of images, each in a random orientation, and the targets turned alike."""
    square = image.shape[-2] == image.shape[-1]
    allowed = [k for k in range(8) if square or k % 2 == 0]  # a non-square batch keeps its shape
    drawn = torch.randint(len(allowed), (len(image),)).tolist()
    turned, wanted = torch.empty_like(image), torch.empty_like(target)
    for choice in set(drawn):
        # Indices are built on the CPU: a boolean mask would synchronize with the device.
        rows = torch.tensor([i for i, other in enumerate(drawn) if other == choice], device=image.device)
        turned[rows] = turn(image[rows], allowed[choice])
        wanted[rows] = turn(target[rows], allowed[choice])
    return feature_map(backbone, turned, times), wanted


class ArchiveStatistics(nn.Module):
    """Mean and covariance of an archive's features, accumulated by batch over all processes.

    Attributes:
        count: Number of features so far.
        mean: Their mean, shape (D,).
        covariance: Their covariance, shape (D, D).
        matrix: Matrix that `whitened` applies to features, shape (D, D); initially the identity.
    """

    count: Tensor
    mean: Tensor
    covariance: Tensor
    matrix: Tensor

    def __init__(self, dim: int) -> None:
        """Initialize an ArchiveStatistics without features.

        Args:
            dim: Width D of the features.
        """
        super().__init__()
        self.register_buffer('count', torch.zeros(()))
        self.register_buffer('mean', torch.zeros(dim))
        self.register_buffer('covariance', torch.zeros(dim, dim))
        self.register_buffer('matrix', torch.eye(dim))

    @torch.no_grad()
    def add(self, features: Tensor) -> None:
        """Add the features of a batch, with the same result on every process.

        Args:
            features: Features, shape (N, D).
        """
        offset = features.float() - self.mean
        sums = torch.cat([offset, torch.ones_like(offset[:, :1])], dim=1)
        with torch.autocast(features.device.type, enabled=False):
            moments = sums.T @ sums  # products, sums and count of the offsets in one matrix
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(moments)
        # Ignore non-finite features: the run stops, and its checkpoint stays intact.
        moments = torch.where(torch.isfinite(moments).all(), moments, torch.zeros_like(moments))
        total = self.count + moments[-1, -1]
        shift = moments[:-1, -1] / total.clamp(min=1)
        second = (self.count * self.covariance + moments[:-1, :-1]) / total.clamp(min=1)
        self.covariance.copy_(second - shift.outer(shift))
        self.mean.add_(shift)
        self.count.copy_(total)

    @torch.no_grad()
    def whiten(self, power: float, ridge: float) -> None:
        """Set the partial whitening that `whitened` applies; it keeps axes and mean squared length.

        Args:
            power: Power of the inverse standard deviation of each principal direction, in [0, 1].
            ridge: Share of the largest standard deviation added to all of them.
        """
        self.matrix.copy_(whitening_matrix(self.covariance, power, ridge))

    def whitened(self, features: Tensor) -> Tensor:
        """Whiten features about the archive's mean, which does not change.

        Args:
            features: Maps, shape (B, S, D, h, w).
        """
        mean = self.mean[:, None, None]
        with torch.autocast(features.device.type, enabled=False):
            return torch.einsum('bsdhw,de->bsehw', features.float() - mean, self.matrix) + mean


def feature_map(vit: ViT, image: Tensor, times: Tensor | None) -> Tensor:
    """Compute the patch features of images as maps, shape (B, S, D, h, w)."""
    patches = vit(image, timestamps=times).patches.float()
    return patches.transpose(2, 3).unflatten(3, vit.patch_embed.grid(image))  # (B,S,L,D) -> (B,S,D,h,w)
