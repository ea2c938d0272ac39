"""How the backbone of a task is built: arguments that tasks take by name and hand on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


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
        compile_backbone: Compile the blocks of backbone, teacher and decoder, at the first steps' cost.
        adapter_dtype: Type of the values in `adapter.safetensors`; bfloat16 halves the file.
        frozen_dtype: Type in which frozen matrices are held while training; bfloat16, for a trainer's
            precision of bf16-mixed, lets go of the float32 numbers that autocast never computes with.
    """

    tokenizer: Literal['patch', 'group-channel', 'temporal'] = 'patch'
    drop_path_rate: float | None = None
    learned_position: bool = True
    patch_embed_init: Literal['random', 'wavelength'] = 'random'
    compile_backbone: bool = False
    adapter_dtype: Literal['float32', 'bfloat16'] = 'float32'
    frozen_dtype: Literal['float32', 'bfloat16'] = 'float32'

    def __post_init__(self) -> None:
        """Check the values."""
        for name in ('adapter_dtype', 'frozen_dtype'):
            if getattr(self, name) not in ('float32', 'bfloat16'):
                raise ValueError(f'{name} must be float32 or bfloat16, got {getattr(self, name)!r}')
