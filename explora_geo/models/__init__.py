"""Vision transformers with tokenizers as their input stage.

Symbols for shapes in this package: B batch, T frames, C bands, H and W pixels, P patch side,
S slots (1 for RGB, channel groups for multispectral images, frames for time series), L patches per slot,
N = S·L tokens, K kept tokens, D width, r rank.
"""

from explora_geo.models.blocks import TrunkConfig
from explora_geo.models.builders import create_vit
from explora_geo.models.decoder import MAEDecoder
from explora_geo.models.position import RotaryConfig
from explora_geo.models.tokenizers import GroupChannelTokenizer, PatchTokenizer, TemporalTokenizer, Tokenizer
from explora_geo.models.vit import Features, ViT
from explora_geo.models.weights import ViTTiny8_Weights

__all__ = [
    'Features',
    'GroupChannelTokenizer',
    'MAEDecoder',
    'PatchTokenizer',
    'RotaryConfig',
    'TemporalTokenizer',
    'Tokenizer',
    'TrunkConfig',
    'ViT',
    'ViTTiny8_Weights',
    'create_vit',
]
