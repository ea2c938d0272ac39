"""The only loader of backbone weights."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.models._api import WeightsEnum

from explora_geo.adaptation import merge_lora
from explora_geo.checkpoints.convert import convert
from explora_geo.checkpoints.sources import read_weights
from explora_geo.checkpoints.wavelengths import patch_embed_by_wavelength
from explora_geo.models.builders import create_vit
from explora_geo.models.position import resample_position
from explora_geo.models.tokenizers import RGB
from explora_geo.models.vit import ViT

# Codes that a model computes where a file has none that fit.
_FIXED = ('pos_embed', 'patch_embed.channel_embed')


class BackboneWeights(NamedTuple):
    """What was read from a checkpoint.

    Attributes:
        state: Backbone tensors with our keys.
        parts: Tensors of the objective (`decoder.*`).
        report: One sentence: the layout, how many tensors matched, what was resampled or left out.
        anew: Names of the backbone's parameters that the weights could not fill; they must train.
    """

    state: dict[str, Tensor]
    parts: dict[str, Tensor]
    report: str
    anew: tuple[str, ...] = ()


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values of a state dict, whatever file it came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().float().contiguous()
        digest.update(f'{name}{tuple(tensor.shape)}'.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def load_weights(
    vit: ViT,
    weights: WeightsEnum | str | Path,
    fresh: Sequence[str] = (),
    patch_embed_init: Literal['random', 'wavelength'] = 'random',
) -> BackboneWeights:
    """Load weights of any known layout into a backbone; positions are resampled to its grid.

    Args:
        vit: Backbone to fill, in place.
        weights: A `WeightsEnum`, a file, or `timm/<name>`.
        fresh: Names of modules that may keep their random start where shapes or bands differ,
            such as `patch_embed`.
        patch_embed_init: How patch embeddings of other bands start: at random as in the paper, or from
            the filters of the weights' bands by wavelength.

    Returns:
        What was read, with a report.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If bands differ, a tensor is missing, unexpected or of another shape.
    """
    raw, meta, source = read_weights(weights)
    try:
        state, parts, layout = convert(raw)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    own = vit.state_dict()
    left_out = [k for k in parts if not k.startswith(('decoder.', 'dino_head.', 'ibot_head.'))]
    if 'mask_token' in state:
        if vit.mask_token is None:
            left_out.append('mask_token')
            del state['mask_token']
        else:
            state['mask_token'] = state['mask_token'].reshape(1, -1)
    notes = _fit_position(state, vit, source)
    slots = vit.patch_embed.slot_dim > 0
    fixed = [k for k in _FIXED if slots and k in own and k not in state]
    notes += [f'fixed codes of the tokenizer: {", ".join(fixed)}'] if fixed else []
    bands = _check_bands(meta, vit, source, fresh)
    before = dict(state)
    if bands is not None:  # filters of other bands are no start, even where their number is the same
        state = {k: v for k, v in state.items() if not k.startswith('patch_embed.')}
    anew = [k for k, v in own.items() if _below(k, fresh) and k not in fixed and _differs(state, k, v)]
    state = {k: v for k, v in state.items() if k not in anew and (k in own or not _below(k, fresh))}
    if patch_embed_init == 'wavelength' and any(_below(k, ['patch_embed']) for k in anew):
        bands = bands or list(RGB)
        found = patch_embed_by_wavelength(before, bands, vit.patch_embed)
        state |= {k: v for k, v in found.items() if k in anew}
        notes.append(f'patch embedding from the filters of {", ".join(bands)} by wavelength')
    if vit.mask_token is not None and 'mask_token' not in state:
        anew.append('mask_token')
    random = [k for k in anew if k not in state]
    notes += [f'starting anew: {", ".join(random)}'] if random else []
    _check(state, own, [*fixed, *random], source, vit, parts)
    vit.load_state_dict({**{k: own[k] for k in (*fixed, *random)}, **state})
    notes += [f'left out: {_summary(left_out)}'] if left_out else []
    paired = getattr(vit.patch_embed, 'satmae_band_pairing', True)
    if layout.endswith('satmae group-channel') and 'decoder.pred.0.weight' in parts and not paired:
        notes.append('its decoder pairs bands as SatMAE does: set satmae_band_pairing to go on with it')
    report = f'{source}: {layout} layout, {len(state)} of {len(own)} tensors matched'
    return BackboneWeights(state, parts, '; '.join([report, *notes]), tuple(anew))


def model_metadata(vit: ViT, backbone: str) -> dict[str, str]:
    """What a file of a whole model says of it in its header.

    Args:
        vit: Backbone.
        backbone: Its name.

    Returns:
        Text entries `backbone`, `bands` and, unless it is the ordinary one, `tokenizer`, as JSON.
    """
    tokenizer = vit.patch_embed
    meta = {'format': 'pt', 'backbone': backbone, 'bands': json.dumps(list(tokenizer.bands))}
    if tokenizer.kind != 'patch':
        meta['tokenizer'] = json.dumps({'kind': tokenizer.kind, **tokenizer.options})
    return meta


def _below(key: str, modules: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f'{name}.') for name in modules)


def _differs(state: Mapping[str, Tensor], key: str, own: Tensor) -> bool:
    return key not in state or state[key].shape != own.shape


def _summary(keys: Sequence[str]) -> str:
    """Names, or the number of names by their first part where there are many."""
    if len(keys) <= 4:
        return ', '.join(keys)
    return ', '.join(f'{name} ({count})' for name, count in Counter(k.split('.')[0] for k in keys).items())


def _check_bands(meta: Mapping[str, str], vit: ViT, source: str, fresh: Sequence[str]) -> list[str] | None:
    """Bands of the weights if they are others than the model's; refused unless the embedding is fresh."""
    stated: list[str] | None = json.loads(meta.get('bands', 'null'))
    bands = list(vit.patch_embed.bands)
    if stated is None or stated == bands:
        return None
    if 'patch_embed' not in fresh:
        raise ValueError(
            f'{source} was trained on the bands {", ".join(stated)}, the model reads {", ".join(bands)}: '
            'select the same bands in the same order, or train a new patch embedding (extra: patch_embed)'
        )
    return stated


def _fit_position(state: dict[str, Tensor], vit: ViT, source: str) -> list[str]:
    """Resample stored positions, class token first, to the grid of the model, in place."""
    stored = state.get('pos_embed')
    if stored is None or stored.shape == vit.pos_embed.shape:
        return []
    if vit.patch_embed.slot_dim and stored.shape[-1] == vit.embed_dim:
        del state['pos_embed']  # part of the width now belongs to the codes of the slots
        return []
    side = round((stored.shape[1] - 1) ** 0.5)
    if side**2 != stored.shape[1] - 1 or stored.shape[2] != vit.pos_embed.shape[2]:
        raise ValueError(
            f'{source} stores positions of shape {tuple(stored.shape)}, the model has '
            f'{tuple(vit.pos_embed.shape)}: give the backbone and tokenizer that the weights belong to'
        )
    grid = vit.patch_embed.grid_size
    patches = resample_position(stored[:, 1:], (side, side), grid)
    state['pos_embed'] = torch.cat([stored[:, :1], patches], dim=1)
    return [f'positions resampled from {side}x{side} to {grid[0]}x{grid[1]}']


def _check(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    kept: Sequence[str],
    source: str,
    vit: ViT,
    parts: Mapping[str, Tensor],
) -> None:
    """Refuse anything but a full match."""
    missing = [k for k in own if k not in state and k not in kept]
    unexpected = [k for k in state if k not in own]
    if 'norm.weight' in missing and any(k.endswith('fc_norm.weight') for k in parts):
        raise ValueError(
            f'{source} was tuned on the average of its patches, with a norm after and none before: build '
            'the backbone with final_norm=False and give fc_norm to its head'
        )
    if missing or unexpected:
        shown = [f'misses {", ".join(missing[:3])}'] if missing else []
        shown += [f'has the unknown {", ".join(unexpected[:3])}'] if unexpected else []
        counts = f'{len(missing)} missing, {len(unexpected)} unknown of {len(own)} tensors'
        raise ValueError(
            f'{source} does not fit a ViT of width {vit.embed_dim} and {vit.depth} blocks: '
            f'it {" and ".join(shown)} ({counts})'
        )
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f'{source} holds {name} of shape {tuple(tensor.shape)}, the model needs '
                f'{tuple(own[name].shape)}: give the backbone, patch size and bands of the weights'
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f'{source} holds values that are not finite in {name}')


def load_backbone(
    name: str, weights: WeightsEnum | str | Path, adapter: str | Path | None = None, **kwargs: object
) -> ViT:
    """Build a backbone and load its weights, and an adapter on top if given.

    Args:
        name: Backbone name; see `create_vit`.
        weights: A `WeightsEnum`, a file, or `timm/<name>`.
        adapter: Adapter file made on exactly these weights; it is applied and merged.
        **kwargs: Further arguments of `create_vit`; an adapter states its image size, bands and tokenizer.

    Returns:
        The backbone in evaluation mode.
    """
    from explora_geo.checkpoints import adapter as adapters  # adapter.py builds on this file

    if adapter is None:
        vit = create_vit(name, **kwargs)  # type: ignore[arg-type]
        load_weights(vit, weights)
        return vit.eval()
    header, _ = adapters.read_adapter(adapter)
    vit = create_vit(name, **{**header.arguments, **kwargs})
    load_weights(vit, weights, fresh=header.explora_config.extra)
    adapters.apply_adapter(vit, adapter)
    merge_lora(vit)
    return vit.eval()
