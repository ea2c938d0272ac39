"""Load backbones: weights of any known layout, an adapter on top, or both written as one file."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import isqrt
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from explora_geo._compat import WeightsEnum
from explora_geo.adaptation import merge_lora
from explora_geo.bands import same_bands
from explora_geo.checkpoints.adapter import AdapterHeader, check_architecture, put_adapter, read_adapter
from explora_geo.checkpoints.convert import Converted, convert, fit_bias
from explora_geo.checkpoints.files import check_values, differences, write_state
from explora_geo.checkpoints.metadata import (
    MAX_GRID,
    model_metadata,
    stated_bands,
    stated_normalization,
    stated_sizes,
    stated_tokenizer,
)
from explora_geo.checkpoints.sources import StoredWeights, read_weights
from explora_geo.checkpoints.wavelengths import patch_embed_by_wavelength
from explora_geo.models.builders import create_vit, task_size
from explora_geo.models.position import fit_position, sincos_2d
from explora_geo.models.tokenizers import RGB
from explora_geo.models.vit import ViT

# Parts that objectives continue to train.
_OBJECTIVES = ('decoder.', 'dino_head.', 'ibot_head.')
# Codes that the model computes if the file has none that fit.
_FIXED = ('pos_embed', 'patch_embed.channel_embed')


class BackboneWeights(NamedTuple):
    """Weights in the form of a backbone.

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


def load_weights(
    vit: ViT,
    weights: WeightsEnum | str | Path | StoredWeights,
    fresh: Sequence[str] = (),
    patch_embed_init: Literal['random', 'wavelength'] = 'random',
) -> BackboneWeights:
    """Load weights of any known layout into a backbone; positions are resampled to its grid.

    Args:
        vit: Backbone to fill, in place.
        weights: As `read_weights` takes them, or what it returned.
        fresh: Names of modules that may keep their random start where shapes or bands differ,
            such as `patch_embed`.
        patch_embed_init: How patch embeddings of other bands start: at random as in the paper, or from
            the filters of the weights' bands by wavelength.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If bands differ, a tensor is missing, unexpected, of another shape, or no weights.
    """
    stored = read_weights(weights)
    return _fill(vit, _match(vit, stored, _converted(stored), fresh, patch_embed_init), stored)


def load_backbone(
    name: str | None,
    weights: WeightsEnum | str | Path | StoredWeights,
    adapter: str | Path | None = None,
    strength: float = 1.0,
    largest: int | None = None,
    **kwargs: Any,
) -> ViT:
    """Build a backbone and load its weights, and an adapter on top if given.

    Name, image and patch size, bands and tokenizer are those that the adapter or the weights state, unless
    others are asked for; positions are resampled to another image size. Everything is checked before memory
    is allocated, and each file is read once.

    Args:
        name: Backbone name, see `create_vit`; as the files state it if None.
        weights: As `read_weights` takes them (a file, an entry, `timm/...`, `hf:...`), or what it returned.
        adapter: Adapter file made on exactly these weights; it is merged.
        strength: Share of the adapter's difference from the weights, from 0 (none) to 1.
        largest: Side of the images at hand, pixels: where nothing states a size, DINOv2's backbones are built
            for at most this and 224 instead of timm's 518.
        **kwargs: Further arguments of `create_vit`; None means as stated.

    Returns:
        The backbone, with its `name`, in evaluation mode (`eval()`); all its parameters train
        (`requires_grad`) until `explora` chooses. `normalization` says how the images that it was trained on
        were normalized, or is None if the files do not state it.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file cannot be read, does not fit the backbone, its bands or the other file, or if
            the name is neither stated nor given.
    """
    if adapter is None and strength != 1:
        raise ValueError(f'strength {strength:g} is of an adapter: give adapter, or leave it out')
    stored = read_weights(weights)
    given = {k: v for k, v in kwargs.items() if v is not None}
    if adapter is not None:
        return _load_adapted(name, stored, adapter, strength, given)[0]
    name, stated = _stated(name, stored)
    options = {**stated, **given}
    if largest is not None and 'img_size' not in options:
        options['img_size'] = task_size(name, options.get('patch_size'), largest)
    return _build(name, stored, options).eval()


def merge_adapter(
    path: str | Path, base: str | Path, out: str | Path, strength: float = 1.0
) -> AdapterHeader:
    """Write base + adapter as one plain model with timm's keys.

    Args:
        path: Adapter file.
        base: Base weights, as `read_weights` takes them.
        out: File to write, `.safetensors`.
        strength: Share of the adapter's difference from the base, in [0, 1].

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file cannot be read, or the adapter was made on another base.
    """
    vit, header = _load_adapted(None, read_weights(base), path, strength, {})
    meta = {**model_metadata(vit, header.backbone), 'adaptation': header.explora_config.notation()}
    write_state(out, vit.state_dict(), meta)
    return header


def _load_adapted(
    name: str | None, stored: StoredWeights, adapter: str | Path, strength: float, given: Mapping[str, Any]
) -> tuple[ViT, AdapterHeader]:
    """Backbone with a merged adapter, in evaluation mode, and the adapter's header."""
    header, state = read_adapter(adapter)
    check = partial(check_architecture, header, path=adapter)
    extra = header.explora_config.extra
    vit = _build(name or header.backbone, stored, {**header.arguments, **given}, extra, check)
    put_adapter(vit, header, state, adapter, strength)
    merge_lora(vit)
    return vit.requires_grad_(True).eval(), header


def _stated(name: str | None, stored: StoredWeights) -> tuple[str, dict[str, Any]]:
    """Name of the backbone, and the arguments of `create_vit` that weights state."""
    meta, source = stored.meta, stored.source
    found = name or meta.get('backbone')
    if found is None:
        raise ValueError(
            f'{source} does not say which backbone it is: give model, such as vit_base_patch16_224'
        )
    stated = stated_tokenizer(meta, source)
    bands = stated_bands(meta, source)
    stated |= {} if bands is None else {'bands': bands}
    if found == meta.get('backbone'):
        stated |= stated_sizes(meta, source)
    return found, stated


def _build(
    name: str,
    stored: StoredWeights,
    options: Mapping[str, Any],
    fresh: Sequence[str] = (),
    check: Callable[[ViT], None] = lambda vit: None,
) -> ViT:
    """Check the fit on the meta device, which takes no memory; then build the backbone and fill it."""
    converted = _converted(stored)
    options = {'learned_position': not _has_fixed_position(converted.backbone), **options}
    with torch.device('meta'):
        plan = create_vit(name, **options)
    grid = plan.patch_embed.grid_size
    if max(grid) > MAX_GRID:
        raise ValueError(
            f'{stored.source}: {name} at {plan.patch_embed.img_size} px has {grid[0]}x{grid[1]} patches, '
            f'more than {MAX_GRID}x{MAX_GRID}: give a smaller img_size'
        )
    check(plan)
    matched = _match(plan, stored, converted, fresh)
    vit = create_vit(name, **options)
    _fill(vit, matched, stored)
    return vit


def _converted(stored: StoredWeights) -> Converted:
    try:
        return convert(stored.state)
    except ValueError as error:
        raise ValueError(f'{stored.source}: {error}') from error


def _has_fixed_position(state: Mapping[str, Tensor]) -> bool:
    """Whether stored positions are fixed sine-cosine codes."""
    stored = state.get('pos_embed')
    if stored is None:  # reported when the weights are matched
        return False
    side = isqrt(stored.shape[1] - 1) if stored.ndim == 3 and stored.shape[1] > 1 else 0
    if stored.shape[0] != 1 or stored.shape[1] != side**2 + 1 or stored.shape[2] % 4 or side > MAX_GRID:
        return False
    return torch.allclose(stored[0, 1:].float(), sincos_2d(stored.shape[2], (side, side)), atol=1e-3)


def _fill(vit: ViT, matched: tuple[BackboneWeights, list[str]], stored: StoredWeights) -> BackboneWeights:
    """Load what was matched into a backbone, in place, once its values are checked."""
    loaded, kept = matched
    check_values({**loaded.state, **loaded.parts}, stored.source)
    own = vit.state_dict()
    vit.load_state_dict({**{k: own[k] for k in kept}, **loaded.state})
    vit.stored_position = loaded.position
    vit.base, vit.licence = (stored.meta.get(name, '') for name in ('base', 'licence'))
    vit.normalization = stated_normalization(stored.meta, vit.patch_embed.bands, stored.source)
    return loaded


def _match(
    vit: ViT,
    weights: StoredWeights,
    converted: Converted,
    fresh: Sequence[str],
    patch_embed_init: Literal['random', 'wavelength'] = 'random',
) -> tuple[BackboneWeights, list[str]]:
    """Match weights to a backbone, which is unchanged and may be on the meta device.

    Returns:
        What is to be loaded, and the names of the backbone's tensors that stay as they are.
    """
    meta, source = weights.meta, weights.source
    parts, layout, own = converted.parts, converted.layout, vit.state_dict()
    _check_family(converted.backbone, vit, source)
    state = fit_bias(converted.backbone, own)
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
    fits = {k for k, v in state.items() if k in own and v.shape == own[k].shape}
    anew = [k for k in own if _below(k, fresh) and k not in fixed and k not in fits]
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
    kept = [*fixed, *random]
    _check(state, {k: v for k, v in own.items() if k not in kept}, source, vit, parts)
    notes += [f'left out: {_summary(left_out)}'] if left_out else []
    paired = getattr(vit.patch_embed, 'satmae_band_pairing', True)
    if layout.endswith('satmae group-channel') and 'decoder.pred.0.weight' in parts and not paired:
        notes.append('its decoder pairs bands as SatMAE does: set satmae_band_pairing to go on with it')
    report = f'{source}: {layout} layout, {len(state)} of {len(own)} tensors matched'
    if vit.pos_embed is None or stored is None or 'pos_embed' not in state:
        stored = None if vit.pos_embed is None else torch.empty(0)
    parts = {k: v for k, v in parts.items() if k.startswith(_OBJECTIVES)}
    return BackboneWeights(state, parts, '; '.join([report, *notes]), tuple(anew), stored), kept


def _check_family(state: Mapping[str, Tensor], vit: ViT, source: str) -> None:
    """Check that weights and model tell places and hold registers alike."""
    rotary, registers = any('.gamma_1' in k for k in state), state.get('reg_token')
    found, own = (0 if x is None else x.shape[1] for x in (registers, vit.reg_token))
    if rotary != (vit.rope is not None) and ('pos_embed' in state or rotary):
        mine, theirs = ('a table of positions', 'rotary positions (DINOv3)')[:: 1 if rotary else -1]
        name = 'vit_small_patch16_dinov3' if rotary else 'vit_base_patch16_224'
        raise ValueError(f'{source} has {theirs}, the model {mine}: give its own model, such as {name}')
    if found != own:
        raise ValueError(
            f'{source} holds {found} register tokens, the model {own}: give its own model, such as '
            f'vit_small_patch14_{f"reg{found}_" if found else ""}dinov2'
        )


def _below(key: str, modules: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f'{name}.') for name in modules)


def _summary(keys: Sequence[str]) -> str:
    """Names, or counts by first component if there are many."""
    counts = Counter(k.split('.')[0] for k in keys)
    return ', '.join(keys if len(keys) <= 4 else (f'{name} ({count})' for name, count in counts.items()))


def _check_bands(meta: Mapping[str, str], vit: ViT, source: str, fresh: Sequence[str]) -> list[str] | None:
    """The weights' bands if they differ from the model's, which only a fresh embedding allows."""
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
    if stored is None or vit.pos_embed is None or stored.shape == vit.pos_embed.shape:
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


def _check(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, vit: ViT, parts: Mapping[str, Tensor]
) -> None:
    """Check that every tensor matches those that are to be loaded."""
    missing, unknown, reshaped = differences(state, own)
    if 'norm.weight' in missing and any(k.endswith('fc_norm.weight') for k in parts):
        raise ValueError(
            f'{source} was tuned on the average of its patches, with a norm after and none before: build '
            'the backbone with final_norm=False and give fc_norm to its head'
        )
    if missing or unknown:
        shown = [f'misses {", ".join(missing[:3])}'] if missing else []
        shown += [f'has the unknown {", ".join(unknown[:3])}'] if unknown else []
        counts = f'{len(missing)} missing, {len(unknown)} unknown of {len(own)} tensors'
        raise ValueError(
            f'{source} does not fit a ViT of width {vit.embed_dim} and {vit.depth} blocks: '
            f'it {" and ".join(shown)} ({counts})'
        )
    for name in reshaped:
        raise ValueError(
            f'{source} holds {name} of shape {tuple(state[name].shape)}, the model needs '
            f'{tuple(own[name].shape)}: give the backbone, patch size and bands of the weights'
        )
