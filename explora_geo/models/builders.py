"""Named backbones: timm's names where timm has the model."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from explora_geo.models.tokenizers import build_tokenizer
from explora_geo.models.vit import ViT

# Width, blocks, heads.
_SIZES = {
    'tiny': (192, 12, 3),
    'small': (384, 12, 6),
    'base': (768, 12, 12),
    'large': (1024, 24, 16),
    'huge': (1280, 32, 16),
    'giant': (1536, 40, 24),
}
_NAME = re.compile(
    r'vit_(?P<size>tiny|small|base|large|huge|giant)_patch(?P<patch>\d+)_(?:(?P<img>\d+)|(?P<dinov2>dinov2))'
    r'(?:_depth(?P<depth>[1-9]\d?))?'
)


#: Image side at which DINOv2's backbones do most of their training; timm's 518 is for its last steps alone.
DINOV2_SIZE = 224


def task_size(name: str, patch_size: int | None = None, largest: int | None = None) -> int | None:
    """Image side that tasks and commands give a backbone whose name states none.

    Args:
        name: Backbone name; see `create_vit`.
        patch_size: Patch side, pixels; from the name if None.
        largest: Side of the images at hand, pixels, above which there is nothing to see.

    Returns:
        For DINOv2's backbones at most `DINOV2_SIZE`, in whole patches; None where the name states a size.
    """
    match = _NAME.fullmatch(name.split('.')[0])
    if match is None or not match['dinov2']:
        return None
    patch = patch_size or int(match['patch'])
    return max(1, min(DINOV2_SIZE, largest or DINOV2_SIZE) // patch) * patch


def create_vit(
    name: str,
    *,
    img_size: int | None = None,
    patch_size: int | None = None,
    bands: Sequence[str] | None = None,
    tokenizer: str = 'patch',
    tokenizer_options: Mapping[str, Any] | None = None,
    drop_path_rate: float = 0.0,
    uniform_drop_path: bool = False,
    dynamic_img_size: bool = False,
    learned_position: bool = True,
    mask_token: bool = False,
    final_norm: bool = True,
) -> ViT:
    """Build a ViT by name, with random weights; build it under `torch.device('meta')` to count only.

    Args:
        name: `vit_{tiny,small,base,large,huge}_patch{P}_{size}` or
            `vit_{small,base,large,giant}_patch14_dinov2` as in timm (a pre-training tag such as `.mae`
            is ignored), any P and size. `_depth6` at the end builds the first six blocks and the norm.
        img_size: Image side, pixels; from the name if None (518 for DINOv2, as in timm).
        patch_size: Patch side, pixels; from the name if None.
        bands: Band names of the input, in order; the tokenizer's default if None: red, green and blue,
            or for `group-channel` the bands of its groups.
        tokenizer: `patch`, `group-channel` (groups of spectral bands) or `temporal` (several dates).
        tokenizer_options: Further arguments of that tokenizer's class, such as `channel_groups` or
            `num_frames`.
        drop_path_rate: Stochastic depth.
        uniform_drop_path: One rate for all blocks (DINOv2) instead of a linear rise.
        dynamic_img_size: Accept other image sizes by resampling the positions.
        learned_position: Train the position codes; False for fixed sine-cosine codes.
        mask_token: Hold a mask token (iBOT).
        final_norm: Norm after the last block; models tuned on average-pooled patches have none.

    Returns:
        The backbone.

    Raises:
        ValueError: If the name is unknown or the sizes do not fit.
    """
    match = _NAME.fullmatch(name.split('.')[0])
    if match is None or (match['size'] == 'giant' and not match['dinov2']):
        raise ValueError(
            f'unknown backbone {name!r}: use vit_{{tiny|small|base|large|huge}}_patch{{P}}_{{size}}, such as '
            'vit_base_patch16_224, or vit_{small|base|large|giant}_patch14_dinov2'
        )
    width, depth, heads = _SIZES[match['size']]
    if match['depth'] is not None:
        if int(match['depth']) > depth:
            raise ValueError(f'{name!r} asks for {match["depth"]} blocks: vit_{match["size"]} has {depth}')
        depth = int(match['depth'])
    dinov2 = match['dinov2'] is not None
    swiglu = match['size'] == 'giant'
    vit = ViT(
        build_tokenizer(
            tokenizer,
            width,
            img_size or (518 if dinov2 else int(match['img'])),
            patch_size or int(match['patch']),
            bands,
            dynamic_img_size,
            tokenizer_options,
        ),
        width,
        depth,
        heads,
        mlp_ratio=16 / 3 if swiglu else 4,  # the gate and the value, each 8/3 of the width
        init_values=1e-5 if dinov2 else None,
        drop_path_rate=drop_path_rate,
        uniform_drop_path=uniform_drop_path,
        learned_position=learned_position,
        mask_token=mask_token,
        final_norm=final_norm,
        swiglu=swiglu,
    )
    vit.name = name
    return vit


def size_name(width: int, depth: int) -> str | None:
    """What a backbone of this width and number of blocks is called, such as `base`, if anything."""
    return next((name for name, (w, d, _) in _SIZES.items() if (w, d) == (width, depth)), None)
