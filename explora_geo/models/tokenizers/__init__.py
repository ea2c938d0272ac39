"""Tokenizers turn images into tokens with a slot axis, (B, S, L, D): the only code that knows bands."""

from explora_geo.models.tokenizers.base import RGB, Tokenizer
from explora_geo.models.tokenizers.build import TOKENIZERS, build_tokenizer
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
