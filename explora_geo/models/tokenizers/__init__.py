"""Tokenizers, which turn images into tokens with a slot axis, (B, S, L, D); only they know about bands."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from explora_geo.models.tokenizers.base import RGB, Tokenizer
from explora_geo.models.tokenizers.group_channel import CHANNEL_GROUPS, SENTINEL2, GroupChannelTokenizer
from explora_geo.models.tokenizers.patch import PatchTokenizer
from explora_geo.models.tokenizers.temporal import TemporalTokenizer

__all__ = [
    'CHANNEL_GROUPS',
    'RGB',
    'SENTINEL2',
    'TOKENIZERS',
    'GroupChannelTokenizer',
    'PatchTokenizer',
    'TemporalTokenizer',
    'Tokenizer',
    'build_tokenizer',
]

#: Tokenizers by their name in configurations and file headers.
TOKENIZERS: dict[str, type[Tokenizer]] = {
    cls.kind: cls for cls in (PatchTokenizer, GroupChannelTokenizer, TemporalTokenizer)
}
_COMMON = ('self', 'embed_dim', 'img_size', 'patch_size', 'bands', 'dynamic_img_size')


def build_tokenizer(
    kind: str,
    embed_dim: int,
    img_size: int,
    patch_size: int,
    bands: Sequence[str] | None = None,
    dynamic_img_size: bool = False,
    options: Mapping[str, Any] | None = None,
) -> Tokenizer:
    """Build a tokenizer by name, with further arguments of its class as `options`.

    If None, `bands` are those of the given channel groups, else the default of the class.

    Raises:
        ValueError: If the name or an option is unknown, or a value does not fit.
    """
    if kind not in TOKENIZERS:
        raise ValueError(f'unknown tokenizer {kind!r}, expected one of {", ".join(TOKENIZERS)}')
    cls: Any = TOKENIZERS[kind]
    options = dict(options or {})
    known = [name for name in inspect.signature(cls).parameters if name not in _COMMON]
    for name in options:
        if name not in known:
            raise ValueError(
                f'tokenizer {kind} has no option {name!r}, available options: {", ".join(known) or "none"}'
            )
    if bands is None and 'channel_groups' in options:
        bands = [band for group in options['channel_groups'] for band in group]
    if bands is not None:
        options['bands'] = bands
    tokenizer: Tokenizer = cls(embed_dim, img_size, patch_size, dynamic_img_size=dynamic_img_size, **options)
    return tokenizer
