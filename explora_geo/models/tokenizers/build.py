"""Tokenizers by name, for configurations and file headers."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from explora_geo.models.tokenizers.base import Tokenizer
from explora_geo.models.tokenizers.group_channel import GroupChannelTokenizer
from explora_geo.models.tokenizers.patch import PatchTokenizer
from explora_geo.models.tokenizers.temporal import TemporalTokenizer

#: Tokenizers by the name that configurations use.
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
    """Build a tokenizer by name.

    Args:
        kind: `patch`, `group-channel` or `temporal`.
        embed_dim: Token width D.
        img_size: Nominal image side, pixels.
        patch_size: Patch side, pixels.
        bands: Band names in image order; red, green and blue if None, or for `group-channel` the bands
            of its groups.
        dynamic_img_size: Accept other image sizes.
        options: Further arguments of that tokenizer's class.

    Returns:
        The tokenizer.

    Raises:
        ValueError: If the name or an option is unknown, or values do not fit.
    """
    if kind not in TOKENIZERS:
        raise ValueError(f'unknown tokenizer {kind!r}: use {", ".join(TOKENIZERS)}')
    cls: Any = TOKENIZERS[kind]
    options = dict(options or {})
    known = [name for name in inspect.signature(cls.__init__).parameters if name not in _COMMON]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f'the tokenizer {kind} has no option {unknown[0]!r}: '
            + (f'it has {", ".join(known)}' if known else 'it has none')
        )
    if bands is None and 'channel_groups' in options:
        bands = [band for group in options['channel_groups'] for band in group]
    if bands is not None:
        options['bands'] = bands
    built: Tokenizer = cls(
        embed_dim, img_size=img_size, patch_size=patch_size, dynamic_img_size=dynamic_img_size, **options
    )
    return built
