"""What tuning trains, how fast, and how it is regularized: published recipes as data."""

from dataclasses import dataclass
from typing import Any, Literal

import kornia.augmentation as K
import torch
from torch import Tensor
from torchvision.transforms import v2

from explora_geo.adaptation import ExPLoRAConfig
from explora_geo.trainers.optim import OptimConfig

Tuning = Literal['linear', 'lora', 'full', 'explora']

_FROZEN: dict[str, Any] = {'unfrozen_blocks': (), 'train_norms': False, 'train_cls_token': False}

#: What trains of the backbone. LoRA-r8 on Q and V of every block is the paper's (appendix B).
ADAPTATIONS: dict[str, ExPLoRAConfig] = {
    'linear': ExPLoRAConfig(**_FROZEN, rank=0),
    'lora': ExPLoRAConfig(**_FROZEN, rank=8),
    'full': ExPLoRAConfig.parse('full'),
    'explora': ExPLoRAConfig.parse('[L]-r32'),
}

#: How it trains. LoRA: appendix B and the released scripts; full: SatMAE's fine-tuning.
OPTIMIZERS: dict[str, OptimConfig] = {
    'linear': OptimConfig(base_lr=1e-3, betas=(0.9, 0.999), warmup_epochs=1, min_lr=1e-6),
    'lora': OptimConfig(base_lr=1e-3, betas=(0.9, 0.999), warmup_epochs=1, min_lr=1e-6),
    'full': OptimConfig(
        base_lr=2e-4, betas=(0.9, 0.999), warmup_epochs=1, min_lr=1e-6, weight_decay=0.05, layer_decay=0.75
    ),
    'explora': OptimConfig(base_lr=1e-3, betas=(0.9, 0.999), warmup_epochs=1, min_lr=1e-6),
}


@dataclass(frozen=True)
class Regularisation:
    """How tuning is kept from learning its images by heart; the defaults are the paper's (appendix B).

    Attributes:
        drop_path: Stochastic depth of the last block, rising linearly; a frozen backbone has none.
        label_smoothing: Of the cross-entropy.
        mixup: Alpha of mixup, 0 for none; one class per image only.
        cutmix: Alpha of cutmix, 0 for none; with both, each batch draws one of them.
        erasing: Share of images with a rectangle erased.
    """

    drop_path: float = 0.2
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('drop_path', 'label_smoothing', 'erasing'):
            value = getattr(self, name)
            if not 0 <= value < 1 and not (name == 'erasing' and value == 1):
                raise ValueError(f'{name} must be in [0, 1), got {value}')
        for name in ('mixup', 'cutmix'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, so that targets become shares of classes."""
        return self.mixup > 0 or self.cutmix > 0

    def mix(self, image: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Mix the images of a batch, and their classes.

        Args:
            image: Images, shape (B, …, H, W).
            label: Classes, shape (B,).
            classes: Number of classes K.

        Returns:
            Images and shares of classes, shape (B, K).
        """
        kinds: list[Any] = []
        if self.mixup:
            kinds.append(v2.MixUp(alpha=self.mixup, num_classes=classes))
        if self.cutmix:
            kinds.append(v2.CutMix(alpha=self.cutmix, num_classes=classes))
        chosen = kinds[int(torch.randint(len(kinds), ()))]
        mixed: tuple[Tensor, Tensor] = chosen(image.flatten(1, -3), label)
        return mixed[0].view_as(image), mixed[1]

    def erase(self, image: Tensor) -> Tensor:
        """Erase rectangles of normalized images, shape (B, …, H, W): zero is the mean of each band."""
        if not self.erasing:
            return image
        erased: Tensor = K.RandomErasing(p=self.erasing, keepdim=True)(image.flatten(1, -3))
        return erased.view_as(image)
