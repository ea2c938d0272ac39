"""Metadata of weights files, checked before anything is built from it.

Functions take the text entries of a header and the file to name in messages; they raise a `ValueError` where
an entry is not what it should be.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from explora_geo.bands import same_bands
from explora_geo.models.normalization import Normalization
from explora_geo.models.vit import ViT

#: Most patches along a side of an image that a file may ask for: 4096 px in patches of 16.
MAX_GRID = 256


@contextmanager
def _read(source: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as error:
        raise ValueError(f'{source} has a damaged header: {error}') from error


def stated_bands(meta: Mapping[str, str], source: str) -> tuple[str, ...] | None:
    """Bands that a header states, if it does."""
    with _read(source):
        return check_bands(json.loads(meta['bands'])) if 'bands' in meta else None


def stated_sizes(meta: Mapping[str, str], source: str) -> dict[str, int]:
    """Sizes of image and patch that a header states, as arguments of `create_vit`."""
    if 'sizes' not in meta:
        return {}
    with _read(source):
        sizes: dict[str, int] = json.loads(meta['sizes'])
        if not isinstance(sizes, dict) or set(sizes) != {'img_size', 'patch_size'}:
            raise ValueError(f'it must state img_size and patch_size, got {sizes!r:.80}')
        check_sizes(**sizes)
    return sizes


def stated_tokenizer(meta: Mapping[str, str], source: str) -> dict[str, Any]:
    """Arguments of `create_vit` that a header states of the tokenizer."""
    if 'tokenizer' not in meta:
        return {}
    with _read(source):
        options = json.loads(meta['tokenizer'])
        if not isinstance(options, dict) or not isinstance(options.get('kind'), str):
            raise ValueError(f'tokenizer must state its kind, got {options!r:.80}')
    return {'tokenizer': options.pop('kind'), 'tokenizer_options': options}


def stated_normalization(meta: Mapping[str, str], bands: Sequence[str], source: str) -> Normalization | None:
    """How a header states that images were normalized; None if it does not, or is of other bands."""
    stated = stated_bands(meta, source)
    if 'normalization' not in meta or stated is None or not same_bands(stated, bands):
        return None
    with _read(source):
        return Normalization.read(json.loads(meta['normalization']), bands)


def check_bands(bands: Any) -> tuple[str, ...]:
    """Bands as a tuple, if they are a list of distinct names.

    Raises:
        ValueError: If they are not.
    """
    named = isinstance(bands, list) and bands and all(isinstance(band, str) and band for band in bands)
    if not named or len(set(bands)) != len(bands):
        raise ValueError(f'bands must be distinct names, got {bands!r:.80}')
    return tuple(bands)


def check_sizes(img_size: Any, patch_size: Any) -> None:
    """Check image and patch sizes, pixels, before a model is built for them.

    Raises:
        ValueError: If one is no whole number, or there would be more than `MAX_GRID` patches along a side.
    """
    whole = all(type(size) is int for size in (img_size, patch_size))
    if not whole or not 0 < patch_size <= img_size <= MAX_GRID * patch_size:
        raise ValueError(f'images of {img_size!r} px in patches of {patch_size!r} px')


def header_entries(facts: Mapping[str, Any]) -> dict[str, str]:
    """Facts as text entries of a header: text as it is, all else as JSON, nothing of what is unknown."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items() if v}


def model_metadata(vit: ViT, backbone: str) -> dict[str, str]:
    """Metadata for the header of a whole model's file.

    Args:
        vit: Backbone.
        backbone: Its name.

    Returns:
        Text entries `backbone`, `bands`, `sizes` of image and patch, where known the `normalization`, the
        weights it was made of (`base`) and their `licence`, and `tokenizer` unless it is the ordinary one.
    """
    tokenizer = vit.patch_embed
    plain = tokenizer.kind == 'patch'
    return header_entries(
        {
            'format': 'pt',
            'backbone': backbone,
            'bands': tokenizer.bands,
            'sizes': {'img_size': tokenizer.img_size, 'patch_size': tokenizer.patch_size},
            'normalization': vit.normalization and vit.normalization.to_dict(),
            'base': vit.base,
            'licence': vit.licence,
            'tokenizer': None if plain else {'kind': tokenizer.kind, **tokenizer.options},
        }
    )
