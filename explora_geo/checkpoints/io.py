"""The only loader of backbone weights."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchvision.models._api import WeightsEnum

from explora_geo.adaptation import merge_lora
from explora_geo.bands import same_bands
from explora_geo.checkpoints.convert import convert
from explora_geo.checkpoints.files import check_values
from explora_geo.checkpoints.metadata import MAX_GRID, stated_bands, stated_normalization
from explora_geo.checkpoints.sources import Read, read_weights
from explora_geo.checkpoints.wavelengths import patch_embed_by_wavelength
from explora_geo.models.builders import create_vit
from explora_geo.models.position import resample_position, sincos_2d
from explora_geo.models.tokenizers import RGB
from explora_geo.models.vit import ViT

# What an objective goes on with beside the backbone.
_OBJECTIVES = ('decoder.', 'dino_head.', 'ibot_head.')
# Codes that a model computes where a file has none that fit.
_FIXED = ('pos_embed', 'patch_embed.channel_embed')


class BackboneWeights(NamedTuple):
    """What was read from a checkpoint.

    Attributes:
        state: Backbone tensors with our keys.
        parts: Tensors of the objective (`decoder.*`).
        report: One sentence: the layout, how many tensors matched, what was resampled or left out.
        anew: Names of the backbone's parameters that the weights could not fill; they must train.
        position: Positions as stored, before they were resampled; empty where the model computes its own.
    """

    state: dict[str, Tensor]
    parts: dict[str, Tensor]
    report: str
    anew: tuple[str, ...] = ()
    position: Tensor | None = None


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
        ValueError: If bands differ, a tensor is missing, unexpected, of another shape, or no weights.
    """
    return fill(vit, read_weights(weights), fresh, patch_embed_init)


def fill(
    vit: ViT,
    read: Read,
    fresh: Sequence[str] = (),
    patch_embed_init: Literal['random', 'wavelength'] = 'random',
) -> BackboneWeights:
    """`load_weights` of what `read_weights` has read."""
    loaded, kept = _match(vit, read, fresh, patch_embed_init)
    parts = {k: v for k, v in loaded.parts.items() if k.startswith(_OBJECTIVES)}
    check_values({**loaded.state, **parts}, read[2])
    own = vit.state_dict()
    vit.load_state_dict({**{k: own[k] for k in kept}, **loaded.state})
    vit.stored_position = loaded.position
    vit.normalization = stated_normalization(read[1], vit.patch_embed.bands, read[2])
    return loaded


def build(
    name: str,
    read: Read,
    fresh: Sequence[str] = (),
    check: Callable[[ViT], None] = lambda vit: None,
    **kwargs: Any,
) -> ViT:
    """Build the backbone of weights and fill it; what does not fit is refused before memory is taken.

    Args:
        name: Backbone name; see `create_vit`.
        read: What `read_weights` has read.
        fresh: See `load_weights`.
        check: Raises ValueError if a backbone, which may be one without numbers, is not the right one.
        **kwargs: Further arguments of `create_vit`.

    Raises:
        ValueError: If the weights do not fit.
    """
    with torch.device('meta'):
        plan = create_vit(name, **kwargs)
    grid = plan.patch_embed.grid_size
    if max(grid) > MAX_GRID:
        raise ValueError(
            f'{read[2]}: {name} at {plan.patch_embed.img_size} px has {grid[0]}x{grid[1]} patches, more than '
            f'{MAX_GRID}x{MAX_GRID}: give a smaller img_size'
        )
    check(plan)
    _match(plan, read, fresh)
    vit = create_vit(name, **kwargs)
    fill(vit, read, fresh)
    return vit


def _match(
    vit: ViT, read: Read, fresh: Sequence[str], patch_embed_init: Literal['random', 'wavelength'] = 'random'
) -> tuple[BackboneWeights, list[str]]:
    """Bring weights into the form of a backbone, which may be one without numbers, and is not changed.

    Returns:
        What is to be loaded, and the names of the backbone's tensors that stay as they are.
    """
    raw, meta, source = read
    try:
        state, parts, layout = convert(raw)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from error
    own = vit.state_dict()
    left_out = [k for k in parts if not k.startswith(_OBJECTIVES)]
    if 'mask_token' in state:
        if vit.mask_token is None:
            left_out.append('mask_token')
            del state['mask_token']
        else:
            state['mask_token'] = state['mask_token'].reshape(1, -1)
    stored = state.get('pos_embed')
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
    notes += [f'left out: {_summary(left_out)}'] if left_out else []
    paired = getattr(vit.patch_embed, 'satmae_band_pairing', True)
    if layout.endswith('satmae group-channel') and 'decoder.pred.0.weight' in parts and not paired:
        notes.append('its decoder pairs bands as SatMAE does: set satmae_band_pairing to go on with it')
    report = f'{source}: {layout} layout, {len(state)} of {len(own)} tensors matched'
    stored = stored if stored is not None and 'pos_embed' in state else torch.empty(0)
    return BackboneWeights(state, parts, '; '.join([report, *notes]), tuple(anew), stored), [*fixed, *random]


def model_metadata(vit: ViT, backbone: str) -> dict[str, str]:
    """What a file of a whole model says of it in its header.

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
    stated = stated_bands(meta, source)
    bands = vit.patch_embed.bands
    if stated is None or same_bands(stated, bands):
        return None
    if 'patch_embed' not in fresh:
        raise ValueError(
            f'{source} was trained on the bands {", ".join(stated)}, the model reads {", ".join(bands)}: '
            'select the same bands in the same order, or train a new patch embedding (extra: patch_embed)'
        )
    return list(stated)


def _fit_position(state: dict[str, Tensor], vit: ViT, source: str) -> list[str]:
    """Resample stored positions, class token first, to the grid of the model, in place."""
    stored = state.get('pos_embed')
    if stored is None or stored.shape == vit.pos_embed.shape:
        return []
    if vit.patch_embed.slot_dim and stored.shape[-1] == vit.embed_dim:
        del state['pos_embed']  # part of the width now belongs to the codes of the slots
        return []
    side = isqrt(stored.shape[1] - 1) if stored.ndim == 3 and stored.shape[1] > 1 else 0
    if not side or (1, side**2 + 1, vit.pos_embed.shape[2]) != stored.shape:
        raise ValueError(
            f'{source} stores positions of shape {tuple(stored.shape)}, the model has '
            f'{tuple(vit.pos_embed.shape)}: give the backbone and tokenizer that the weights belong to'
        )
    grid = vit.patch_embed.grid_size
    state['pos_embed'] = fit_position(stored, grid)
    return [f'positions resampled from {side}x{side} to {grid[0]}x{grid[1]}']


def fit_position(stored: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resample positions of a square grid, class token first, shape (1, 1 + L, D), to another grid."""
    side = isqrt(stored.shape[1] - 1)
    return torch.cat([stored[:, :1], resample_position(stored[:, 1:], (side, side), grid)], dim=1)


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


def load_backbone(
    name: str,
    weights: WeightsEnum | str | Path,
    adapter: str | Path | None = None,
    strength: float = 1.0,
    **kwargs: object,
) -> ViT:
    """Build a backbone and load its weights, and an adapter on top if given.

    Args:
        name: Backbone name; see `create_vit`.
        weights: A `WeightsEnum`, a file, or `timm/<name>`.
        adapter: Adapter file made on exactly these weights; it is applied and merged.
        strength: Share of what the adapter adds to the weights, from 0 (nothing) to 1.
        **kwargs: Further arguments of `create_vit`; an adapter states its image size, bands and tokenizer.
            Another image size is no contradiction: positions are resampled.

    Returns:
        The backbone in evaluation mode (`eval()`), of which everything trains (`requires_grad`) until
        `explora` chooses. Its `normalization` is how the images that it was adapted on were normalized, or
        None if the files do not say.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file cannot be read, does not fit the backbone, its bands or one another, or the
            adapter was made on other weights.
    """
    return build_backbone(name, read_weights(weights), adapter, strength, **kwargs)


def _has_fixed_position(read: Read) -> bool:
    """Whether the positions of weights are sine-cosine codes, which nobody trained."""
    try:
        stored = convert(read[0]).backbone['pos_embed']
    except (KeyError, ValueError):  # told in full when the weights are matched
        return False
    side = isqrt(stored.shape[1] - 1) if stored.ndim == 3 and stored.shape[1] > 1 else 0
    if stored.shape[0] != 1 or stored.shape[1] != side**2 + 1 or stored.shape[2] % 4 or side > MAX_GRID:
        return False
    return torch.allclose(stored[0, 1:].float(), sincos_2d(stored.shape[2], (side, side)), atol=1e-3)


def build_backbone(
    name: str, read: Read, adapter: str | Path | None = None, strength: float = 1.0, **kwargs: Any
) -> ViT:
    """`load_backbone` of what `read_weights` has read."""
    from explora_geo.checkpoints import adapter as adapters  # adapter.py builds on this file

    kwargs.setdefault('learned_position', not _has_fixed_position(read))
    if adapter is None:
        if strength != 1:
            raise ValueError(f'strength {strength:g} is of an adapter: give adapter, or leave it out')
        return build(name, read, **kwargs).requires_grad_(True).eval()
    header, state = adapters.read_adapter(adapter)
    fits = partial(adapters.check_architecture, header, path=adapter)
    extra = header.explora_config.extra
    vit = build(name, read, extra, fits, **{**header.arguments, **kwargs})
    adapters.put_adapter(vit, header, state, adapter, strength)
    merge_lora(vit)
    return vit.requires_grad_(True).eval()
