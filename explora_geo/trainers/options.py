"""Task options: how to build the backbone, what to tune, and how to regularize tuning."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import kornia.augmentation as K
import torch
from torch import Tensor
from torchvision.transforms import v2

from explora_geo.adaptation import ExPLoRAConfig
from explora_geo.models.position import RotaryConfig
from explora_geo.trainers.optim import OptimConfig

Tuning = Literal['linear', 'lora', 'full', 'explora']
T = TypeVar('T')

_FROZEN: dict[str, Any] = {'unfrozen_blocks': (), 'train_norms': False, 'train_cls_token': False}

#: Trainable parts of the backbone. LoRA-r8 on Q and V of every block follows the paper (appendix B).
ADAPTATIONS: dict[str, ExPLoRAConfig] = {
    'linear': ExPLoRAConfig(**_FROZEN, rank=0),
    'lora': ExPLoRAConfig(**_FROZEN, rank=8),
    'full': ExPLoRAConfig.parse('full'),
    'explora': ExPLoRAConfig.parse('[L]-r32'),
}

_FEW = OptimConfig(base_lr=1e-3, betas=(0.9, 0.999), warmup_epochs=1, min_lr=1e-6)
_ALL = OptimConfig(
    base_lr=2e-4, betas=(0.9, 0.999), warmup_epochs=1, min_lr=1e-6, weight_decay=0.05, layer_decay=0.75
)
#: Optimizers. LoRA: appendix B and the released scripts; full: SatMAE's fine-tuning.
OPTIMIZERS: dict[str, OptimConfig] = {'linear': _FEW, 'lora': _FEW, 'full': _ALL, 'explora': _FEW}


def restored(kind: type[T], value: Any) -> T | None:
    """Return a group of options, rebuilt if it is a mapping, as in a checkpoint's hyper-parameters."""
    return kind(**value) if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class BackboneOptions:
    """Tokenization and activation memory of the backbone; None uses what the weights state.

    Attributes:
        bands: Band names of the images, in order; if None, those of the weights or the tokenizer.
        img_size: Image side, in pixels; if None, as stated by the files or the name, or 224 for DINOv2.
        patch_size: Patch side, in pixels; if None, as stated by the files or the name.
        tokenizer: `patch`, `group-channel` (groups of spectral bands, whose patch embeddings start at random
            and train unless the weights include them) or `temporal` (frames with `timestamps`).
        tokenizer_options: Further arguments of the tokenizer class, such as `channel_groups`.
        grad_checkpointing: Recompute activations in the backward pass to save memory.
    """

    bands: Sequence[str] | None = None
    img_size: int | None = None
    patch_size: int | None = None
    tokenizer: Literal['patch', 'group-channel', 'temporal'] | None = None
    tokenizer_options: dict[str, Any] | None = None
    grad_checkpointing: bool = False


@dataclass(frozen=True)
class PretrainOptions(BackboneOptions):
    """`BackboneOptions` with compute and initialization options for pre-training.

    Attributes:
        drop_path_rate: Stochastic depth of the backbone during training; the preset's if None.
        learned_position: Train position embeddings in full pre-training; False keeps MAE's fixed ones.
        patch_embed_init: Initialization of patch embeddings for other bands: random as in the paper, or from
            the weights' filters by wavelength.
        rotary: Random variation of DINOv3's rotary positions during training; none if None.
        compile_backbone: Compile the blocks of backbone, teacher and decoder; slows down the first steps.
        adapter_dtype: Data type of the values in `adapter.safetensors`; bfloat16 halves the file size.
        frozen_dtype: Data type of frozen matrices during training; bfloat16, for bf16-mixed precision, frees
            the float32 values that autocast never uses.
    """

    tokenizer: Literal['patch', 'group-channel', 'temporal'] = 'patch'
    drop_path_rate: float | None = None
    learned_position: bool = True
    patch_embed_init: Literal['random', 'wavelength'] = 'random'
    rotary: RotaryConfig | None = None
    compile_backbone: bool = False
    adapter_dtype: Literal['float32', 'bfloat16'] = 'float32'
    frozen_dtype: Literal['float32', 'bfloat16'] = 'float32'

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('adapter_dtype', 'frozen_dtype'):
            if getattr(self, name) not in ('float32', 'bfloat16'):
                raise ValueError(f'{name} must be float32 or bfloat16, got {getattr(self, name)!r}')


@dataclass(frozen=True)
class Regularization:
    """Regularization of tuning; the defaults follow the paper (appendix B).

    Attributes:
        drop_path: Stochastic depth of the last block, rising linearly up to it; 0 for a frozen backbone.
        label_smoothing: Label smoothing of the cross-entropy.
        mixup: Alpha of mixup, 0 for none; only with one class per image.
        cutmix: Alpha of cutmix, 0 for none; with both, each batch uses one of them at random.
        erasing: Fraction of images with a rectangle erased.
    """

    drop_path: float = 0.2
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('drop_path', 'label_smoothing'):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f'{name} must be in [0, 1), got {getattr(self, name)}')
        if not 0 <= self.erasing <= 1:
            raise ValueError(f'erasing must be in [0, 1], got {self.erasing}')
        for name in ('mixup', 'cutmix'):
            if getattr(self, name) < 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, which turns targets into shares of classes."""
        return self.mixup > 0 or self.cutmix > 0

    def apply(self, image: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Mix the images of a batch and their classes, then erase rectangles.

        Args:
            image: Normalized images, shape (B, …, H, W); erased pixels become zero, the band mean.
            target: Classes, shape (B,); without mixing, any other target.
            classes: Number of classes K.

        Returns:
            Images and targets; mixed targets are shares of classes, shape (B, K).
        """
        if not self.mixes and not self.erasing:
            return image, target
        changed = image.flatten(1, -3)
        kinds = [('mixup', v2.MixUp), ('cutmix', v2.CutMix)]
        mixers = [
            k(alpha=getattr(self, name), num_classes=classes) for name, k in kinds if getattr(self, name)
        ]
        if mixers:
            changed, target = mixers[int(torch.randint(len(mixers), ()))](changed, target)
        if self.erasing:
            changed = K.RandomErasing(p=self.erasing, keepdim=True)(changed)
        return changed.view_as(image), target
