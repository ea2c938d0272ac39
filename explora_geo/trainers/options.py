"""What tasks are told: how their backbone is built, what of it tunes, and how tuning is regularized."""

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

#: What trains of the backbone. LoRA-r8 on Q and V of every block is the paper's (appendix B).
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
#: How it trains. LoRA: appendix B and the released scripts; full: SatMAE's fine-tuning.
OPTIMIZERS: dict[str, OptimConfig] = {'linear': _FEW, 'lora': _FEW, 'full': _ALL, 'explora': _FEW}


def restored(kind: type[T], value: Any) -> T | None:
    """A group of options, which a checkpoint's hyper-parameters hold as a mapping."""
    return kind(**value) if isinstance(value, Mapping) else value


@dataclass(frozen=True)
class BackboneOptions:
    """How images become tokens of the backbone, and what its activations cost; None is what weights state.

    Attributes:
        bands: Band names of the images, in order; as weights or tokenizer have them if None.
        img_size: Image side, pixels; what files and name state if None, or 224 for DINOv2's.
        patch_size: Patch side, pixels; what files and name state if None.
        tokenizer: How images become tokens: `patch`, `group-channel` (groups of spectral bands, whose patch
            embeddings start anew and train unless the weights have them) or `temporal` (frames with
            `timestamps`).
        tokenizer_options: Further arguments of that tokenizer's class, such as `channel_groups`.
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
    """`BackboneOptions` for pre-training, and how it computes.

    Attributes:
        drop_path_rate: Stochastic depth of the backbone in training; the preset's if None.
        learned_position: Train position codes in full pre-training; False for MAE's fixed ones.
        patch_embed_init: How patch embeddings of other bands start: at random as in the paper, or from
            the weights' filters by wavelength.
        rotary: How the rotations of DINOv3's backbones vary in training; not at all if None.
        compile_backbone: Compile the blocks of backbone, teacher and decoder, at the first steps' cost.
        adapter_dtype: Type of the values in `adapter.safetensors`; bfloat16 halves the file.
        frozen_dtype: Type in which frozen matrices are held while training; bfloat16, for a trainer's
            precision of bf16-mixed, lets go of the float32 numbers that autocast never computes with.
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

    def apply(self, image: Tensor, target: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Mix the images of a batch and their classes, then erase rectangles.

        Args:
            image: Normalized images, shape (B, …, H, W): zero, the mean of each band, is what is left.
            target: Classes, shape (B,); other targets where nothing is mixed.
            classes: Number of classes K.

        Returns:
            Images and targets, mixed as shares of classes, shape (B, K).
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
