"""Backbones by name, with timm's names where timm has the model."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from explora_geo.models.blocks import TrunkConfig
from explora_geo.models.position import RotaryConfig
from explora_geo.models.tokenizers import TOKENIZERS, build_tokenizer
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
    r'vit_(?P<size>tiny|small|base|large|huge|giant)_patch(?P<patch>\d+)_(?:reg(?P<registers>[1-8])_)?'
    r'(?:(?P<img>\d+)|(?P<dinov2>dinov2)|(?P<dinov3>dinov3)(?P<bias>_qkvb)?)(?:_depth(?P<depth>[1-9]\d?))?'
)
# Sizes of DINOv2's and DINOv3's models; the larger DINOv3 models use a different gated MLP.
_PUBLISHED = {'dinov2': ('small', 'base', 'large', 'giant'), 'dinov3': ('small', 'base', 'large')}
# Image side for names without one, as in timm
_IMG_SIZE = {'dinov2': 518, 'dinov3': 256}
#: Image side of most of DINOv2's training; timm's 518 applies to its last steps only.
DINOV2_SIZE = 224


def task_size(name: str, patch_size: int | None = None, largest: int | None = None) -> int | None:
    """Return the image side, pixels, that tasks and commands use for a backbone whose name gives none.

    The side is at most `DINOV2_SIZE` and the side of the `largest` images, pixels, beyond which there is no
    more detail, rounded down to whole patches. Return None if the name gives a size.
    """
    match = _NAME.fullmatch(name.split('.')[0])
    if match is None or match['img']:
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
    dynamic_img_size: bool = False,
    rotary: RotaryConfig | None = None,
    **options: Any,
) -> ViT:
    """Build a ViT by name with random weights; use `torch.device('meta')` to count parameters only.

    Args:
        name: `vit_{tiny,small,base,large,huge}_patch{P}_{size}`,
            `vit_{small,base,large,giant}_patch14_dinov2` or `vit_{small,base,large}_patch16_dinov3` (`_qkvb`
            for a bias on queries and values) as in timm, any P and size; a tag such as `.mae` is ignored.
            `reg4_` after the patch adds registers; a final `_depth6` keeps only the first six blocks.
        img_size: Image side, pixels; from the name if None (518 for DINOv2, 256 for DINOv3, as in timm).
        patch_size: Patch side, pixels; from the name if None.
        bands: Band names of the input, in order. If None, red, green and blue, or the bands of the groups
            for `group-channel`.
        tokenizer: `patch`, `group-channel` (groups of spectral bands) or `temporal` (several dates).
        tokenizer_options: Further arguments of the tokenizer class: `channel_groups`, `num_frames`, ...
        dynamic_img_size: Accept other image sizes by resampling the positions; DINOv3 always does.
        rotary: Augmentation of rotary positions in training (DINOv3 backbones); none if None.
        **options: Further arguments of `ViT`: `drop_path_rate`, `uniform_drop_path`, `learned_position`,
            `mask_token`, `final_norm`.

    Raises:
        ValueError: If the name is unknown or the sizes do not fit.
    """
    match = _NAME.fullmatch(name.split('.')[0])
    family = match and next((f for f in _PUBLISHED if match[f]), '')
    if match is None or match['size'] not in _PUBLISHED.get(family or '', tuple(_SIZES)[:-1]):
        raise ValueError(
            f'unknown backbone {name!r}, expected vit_{{tiny|small|base|large|huge}}_patch{{P}}_{{size}} '
            '(such as vit_base_patch16_224), vit_{small|base|large|giant}_patch14_dinov2 (with reg4_ before '
            'dinov2 for registers) or vit_{small|base|large}_patch16_dinov3'
        )
    width, depth, heads = _SIZES[match['size']]
    if match['depth'] is not None:
        if int(match['depth']) > depth:
            raise ValueError(f'{name!r} asks for {match["depth"]} blocks: vit_{match["size"]} has {depth}')
        depth = int(match['depth'])
    dinov3 = family == 'dinov3'
    if rotary and not dinov3:
        raise ValueError(f'rotary is only for DINOv3, but {name!r} has a position table: omit rotary')
    swiglu = match['size'] == 'giant'
    trunk = TrunkConfig(
        mlp_ratio=16 / 3 if swiglu else 4,  # gate and value, each 8/3 of the width
        swiglu=swiglu,
        init_values=1e-5 if family else None,
        norm_eps=1e-5 if dinov3 else 1e-6,
        registers=int(match['registers'] or (4 if dinov3 else 0)),
        rotary=(rotary or RotaryConfig()) if dinov3 else None,
        qkv_bias=not dinov3 or match['bias'] is not None,
    )
    given = dict(tokenizer_options or {})
    if dinov3 and (step := getattr(TOKENIZERS.get(tokenizer), 'slot_step', 0)):
        given.setdefault('slot_dim', width // step * step)  # rotary positions take none of the width
    patch = patch_size or int(match['patch'])
    side = img_size or int(match['img'] or _IMG_SIZE[family or ''])
    dynamic = dynamic_img_size or dinov3
    parts = build_tokenizer(tokenizer, width, side, patch, bands, dynamic, given)
    vit = ViT(parts, width, depth, heads, trunk, **options)
    vit.name = name
    return vit


def size_name(width: int, depth: int) -> str | None:
    """Return the size name of a backbone of this width and depth, such as `base`, or None."""
    return next((name for name, (w, d, _) in _SIZES.items() if (w, d) == (width, depth)), None)
