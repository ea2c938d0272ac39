"""Describe weights files without building the model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import isqrt
from pathlib import Path

from torch import Tensor

from explora_geo._compat import WeightsEnum
from explora_geo.checkpoints.convert import backbone_name, convert, depth_of
from explora_geo.checkpoints.metadata import stated_bands
from explora_geo.checkpoints.sources import read_weights


def describe_weights(weights: WeightsEnum | str | Path) -> dict[str, str]:
    """Describe weights of any known layout.

    Args:
        weights: As `read_weights` takes them.

    Returns:
        Text by title: layout, backbone, tokenizer, bands, patch, image size, blocks, decoder, parameters,
        and what stands beside the backbone.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If it cannot be read or is no ViT.
    """
    raw, meta, source = read_weights(weights, values=False)
    try:
        state, parts, layout = convert(raw)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    filters = sorted((k, v) for k, v in state.items() if k.startswith('patch_embed.proj') and v.ndim == 4)
    position, rotary = state.get('pos_embed'), 'blocks.0.gamma_1' in state
    table = position is not None and position.ndim == 3 and position.shape[1] > 1
    if not filters or not (rotary or table):
        raise ValueError(f'{source} has no patch embedding or no positions, so it is no whole ViT')
    width, patch = filters[0][1].shape[0], filters[0][1].shape[-1]
    depth, counts = depth_of(state), [v.shape[1] for _, v in filters]
    side = isqrt(position.shape[1] - 1) if position is not None and table else 0
    registers = state['reg_token'].shape[1] if 'reg_token' in state else 0
    others = Counter(k.split('.')[0] for k in parts if not k.startswith('decoder.'))
    rows = {
        'layout': layout,
        'backbone': meta.get('backbone') or backbone_name(state) or 'of a size without a name',
        'tokenizer': meta.get('tokenizer') or _tokenizer(state, width, counts),
        'bands': ', '.join(stated_bands(meta, source) or ()) or f'{sum(counts)}, names not stated',
        'patch': f'{patch} px',
        'image size': 'any, rotary positions' if rotary else f'{side * patch} px, {side}x{side} patches',
        'width, blocks': f'{width}, {depth}' + (f', {registers} registers' if registers else ''),
        'decoder': _decoder(parts),
        'parameters': f'{sum(v.numel() for v in state.values()):,} without what stands beside',
        'beside': ', '.join(f'{k} ({n})' for k, n in others.items()) or 'nothing',
    }
    return rows | {key: meta[key] for key in ('licence', 'publication', 'dataset', 'base') if key in meta}


def _tokenizer(state: Mapping[str, Tensor], width: int, counts: Sequence[int]) -> str:
    if 'patch_embed.channel_embed' in state:
        return f'group-channel, groups of {", ".join(map(str, counts))} bands'
    position = state.get('pos_embed')
    return 'temporal' if position is not None and position.shape[-1] < width else 'patch'


def _decoder(parts: Mapping[str, Tensor]) -> str:
    embed = parts.get('decoder.embed.weight')
    if embed is None or embed.ndim != 2:
        return 'none'
    return f'width {embed.shape[0]}, {depth_of(parts, "decoder.blocks.")} blocks'
