"""Metadata of weights files, checked before anything is built from it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from explora_geo.bands import same_bands
from explora_geo.models.normalization import Normalization
from explora_geo.models.vit import ViT

#: Most patches along a side of an image that a file may ask for: 4096 px in patches of 16.
MAX_GRID = 256


def stated_bands(meta: Mapping[str, str], source: str) -> tuple[str, ...] | None:
    """Bands that the header of a file states, if it does.

    Args:
        meta: Text entries of the header.
        source: File to name in the message.

    Raises:
        ValueError: If the entry is no list of distinct names.
    """
    if 'bands' not in meta:
        return None
    return check_bands(_json(meta, 'bands', source), source)


def check_bands(bands: Any, source: str) -> tuple[str, ...]:
    """Bands as a tuple, if they are a list of distinct names.

    Raises:
        ValueError: If they are not.
    """
    named = isinstance(bands, list) and bands and all(isinstance(band, str) and band for band in bands)
    if not named or len(set(bands)) != len(bands):
        raise ValueError(f'{source} has a damaged header: bands must be distinct names, got {bands!r:.80}')
    return tuple(bands)


def check_sizes(img_size: Any, patch_size: Any) -> None:
    """Check image and patch sizes before a model is built for them.

    Args:
        img_size: Image side, pixels.
        patch_size: Patch side, pixels.

    Raises:
        ValueError: If one is no whole number, or there would be more than `MAX_GRID` patches along a side.
    """
    whole = all(type(size) is int for size in (img_size, patch_size))
    if not whole or not 0 < patch_size <= img_size <= MAX_GRID * patch_size:
        raise ValueError(f'images of {img_size!r} px in patches of {patch_size!r} px')


def stated_sizes(meta: Mapping[str, str], source: str) -> dict[str, int]:
    """Sizes of image and patch that the header of a file states, as arguments of `create_vit`.

    Args:
        meta: Text entries of the header.
        source: File to name in the message.

    Raises:
        ValueError: If the entry holds something else.
    """
    if 'sizes' not in meta:
        return {}
    sizes = _json(meta, 'sizes', source)
    if not isinstance(sizes, dict) or set(sizes) != {'img_size', 'patch_size'}:
        raise ValueError(
            f'{source} has a damaged header: it must state img_size and patch_size, got {sizes!r:.80}'
        )
    try:
        check_sizes(**sizes)
    except ValueError as error:
        raise ValueError(f'{source} has a damaged header: {error}') from error
    return sizes


def stated_tokenizer(meta: Mapping[str, str], source: str) -> dict[str, Any]:
    """Arguments of `create_vit` that the header of a file states of its tokenizer.

    Args:
        meta: Text entries of the header.
        source: File to name in the message.

    Raises:
        ValueError: If the entry is no mapping with the tokenizer's kind.
    """
    if 'tokenizer' not in meta:
        return {}
    options = _json(meta, 'tokenizer', source)
    if not isinstance(options, dict) or not isinstance(options.get('kind'), str):
        raise ValueError(f'{source} has a damaged header: tokenizer must state its kind, got {options!r:.80}')
    return {'tokenizer': options.pop('kind'), 'tokenizer_options': options}


def stated_normalization(meta: Mapping[str, str], bands: Sequence[str], source: str) -> Normalization | None:
    """How the header of a file states that images were normalized, if it does.

    Args:
        meta: Text entries of the header.
        bands: Bands of the model.
        source: File to name in the message.

    Raises:
        ValueError: If the entry holds something else, or the file is of other bands.
    """
    stated = stated_bands(meta, source)
    if 'normalization' not in meta or stated is None or not same_bands(stated, bands):
        return None
    try:
        return Normalization.read(_json(meta, 'normalization', source), bands)
    except ValueError as error:
        raise ValueError(f'{source} has a damaged header: {error}') from error


def model_metadata(vit: ViT, backbone: str) -> dict[str, str]:
    """Metadata for the header of a whole model's file.

    Args:
        vit: Backbone.
        backbone: Its name.

    Returns:
        Text entries `backbone`, `bands`, `sizes` of image and patch, `normalization` if it is known, and
        `tokenizer` unless it is the ordinary one, as JSON.
    """
    tokenizer = vit.patch_embed
    sizes = {'img_size': tokenizer.img_size, 'patch_size': tokenizer.patch_size}
    meta = {'format': 'pt', 'backbone': backbone, 'bands': json.dumps(list(tokenizer.bands))}
    meta['sizes'] = json.dumps(sizes)
    if vit.normalization is not None:
        meta['normalization'] = json.dumps(vit.normalization.to_dict())
    if tokenizer.kind != 'patch':
        meta['tokenizer'] = json.dumps({'kind': tokenizer.kind, **tokenizer.options})
    return meta


def _json(meta: Mapping[str, str], key: str, source: str) -> Any:
    try:
        return json.loads(meta[key])
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{source} has a damaged header: {key} is no JSON ({error})') from error
