"""Load backbones: weights in any known layout, an adapter on top, or both merged into one file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from explora_geo._compat import WeightsEnum
from explora_geo.adaptation import merge_lora
from explora_geo.bands import same_bands
from explora_geo.checkpoints.adapter import check_architecture, put_adapter, read_adapter
from explora_geo.checkpoints.convert import (
    Converted,
    backbone_name,
    convert,
    depth_of,
    fit_bias,
    grid_side,
    register_count,
)
from explora_geo.checkpoints.facts import MAX_GRID, Facts, model_metadata
from explora_geo.checkpoints.files import check_values, differences, write_state
from explora_geo.checkpoints.sources import StoredWeights, read_weights
from explora_geo.checkpoints.wavelengths import patch_embed_by_wavelength
from explora_geo.models.builders import create_vit, task_size
from explora_geo.models.position import fit_position, sincos_2d
from explora_geo.models.tokenizers import RGB
from explora_geo.models.vit import ViT

# Parts that objectives continue to train.
_OBJECTIVES = ('decoder.', 'dino_head.', 'ibot_head.')
# Codes computed by the model if the file has none that fit.
_FIXED = ('pos_embed', 'patch_embed.channel_embed')


class BackboneWeights(NamedTuple):
    """Weights in the layout of a backbone."""

    state: dict[str, Tensor]  # tensors of the backbone, with our keys
    parts: dict[str, Tensor]  # tensors of the objective (`decoder.*`)
    report: str  # one sentence: the layout, how many tensors matched, what was resampled or left out
    anew: tuple[str, ...] = ()  # parameters that the weights could not fill; they must train
    position: Tensor | None = None  # as stored; empty if the model computes its own
    kept: tuple[str, ...] = ()  # tensors of the backbone left unchanged


def load_weights(
    vit: ViT,
    weights: WeightsEnum | str | Path | StoredWeights,
    fresh: Sequence[str] = (),
    patch_embed_init: Literal['random', 'wavelength'] = 'random',
) -> BackboneWeights:
    """Load weights from any source of `read_weights` into a backbone, resampling positions to its grid.

    Args:
        vit: Backbone to fill, in place.
        weights: A file, an entry, `timm/...`, `hf:...`, or the result of `read_weights`.
        fresh: Modules that may keep their random start if shapes or bands differ, such as `patch_embed`.
        patch_embed_init: Initialization of patch embeddings for other bands: random as in the paper, or from
            the filters of the weights' bands by wavelength.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If bands differ, or a tensor is missing, unexpected, of another shape, or not a weight.
    """
    stored = read_weights(weights)
    matched = _match(vit, stored, _converted(stored), fresh, patch_embed_init)
    _fill(vit, matched, stored.facts)
    return matched


def load_backbone(
    name: str | None,
    weights: WeightsEnum | str | Path | StoredWeights,
    adapter: str | Path | None = None,
    strength: float = 1.0,
    largest: int | None = None,
    **kwargs: Any,
) -> ViT:
    """Build a backbone, load its weights, and merge an adapter if given.

    Name, image and patch size, bands and tokenizer default to those stated by the adapter or the weights;
    positions are resampled to other image sizes. Everything is checked before allocation, and each file is
    read once.

    Args:
        name: Backbone name, see `create_vit`; if None, as stated by the files.
        weights: Source for `read_weights` (a file, an entry, `timm/...`, `hf:...`), or its result.
        adapter: Adapter file made on exactly these weights; it is merged.
        strength: Fraction of the adapter's difference from the weights to apply, from 0 (none) to 1.
        largest: Side of the largest available images, in pixels: if no size is stated, DINOv2 backbones are
            built for at most this and 224 instead of timm's 518.
        **kwargs: Further arguments of `create_vit`; None means as stated.

    Returns:
        The backbone, with its `name`, in evaluation mode (`eval()`); all its parameters train
        (`requires_grad`) until `explora` selects some. `normalization` is that of its training images, or
        None if the files do not state it.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If a file cannot be read, does not fit the backbone, its bands or the other file, or if
            the name is neither stated nor given.
    """
    if adapter is None and strength != 1:
        raise ValueError(f'strength {strength:g} requires an adapter: pass adapter or omit strength')
    stored = read_weights(weights)
    header, trained = (None, {}) if adapter is None else read_adapter(adapter)
    facts = header or stored.facts
    found, source = name or facts.backbone, stored.source
    if not found:
        raise ValueError(f'{source} does not specify its backbone: pass model, such as vit_base_patch16_224')
    sizes = () if found == facts.backbone else ('img_size', 'patch_size')  # stated for another model
    options = {k: v for k, v in facts.arguments.items() if k not in sizes}
    options |= {k: v for k, v in kwargs.items() if v is not None}
    if largest is not None and 'img_size' not in options:
        options['img_size'] = task_size(found, options.get('patch_size'), largest)
    converted = _converted(stored)
    options.setdefault('learned_position', not _has_fixed_position(converted.backbone))
    with torch.device('meta'):  # takes no memory
        plan = create_vit(found, **options)
    tokenizer = plan.patch_embed
    if tokenizer.grid_size[0] > MAX_GRID:
        raise ValueError(
            f'{source}: {found} at {tokenizer.img_size} px has {tokenizer.num_patches:,} patches, more than '
            f'{MAX_GRID}x{MAX_GRID}: use a smaller img_size'
        )
    if header is not None:
        check_architecture(header, plan, str(adapter))
    matched = _match(plan, stored, converted, () if header is None else header.explora_config.extra)
    vit = create_vit(found, **options)
    _fill(vit, matched, stored.facts)
    if header is not None:
        put_adapter(vit, header, trained, str(adapter), strength)
        merge_lora(vit).requires_grad_(True)
    return vit.eval()


def merge_adapter(path: str | Path, base: str | Path, out: str | Path, strength: float = 1.0) -> ViT:
    """Merge an adapter into its base and write one plain model with timm's keys; see `load_backbone`."""
    vit = load_backbone(None, base, path, strength)
    write_state(out, vit.state_dict(), model_metadata(vit, vit.name))
    return vit


def _converted(stored: StoredWeights) -> Converted:
    try:
        return convert(stored.state)
    except ValueError as error:
        raise ValueError(f'{stored.source}: {error}') from error


def _has_fixed_position(state: Mapping[str, Tensor]) -> bool:
    """Return whether stored positions are fixed sine-cosine codes."""
    side = grid_side(state.get('pos_embed'))
    if not 0 < side <= MAX_GRID or state['pos_embed'].shape[2] % 4:
        return False
    stored = state['pos_embed'][0, 1:].float()
    return torch.allclose(stored, sincos_2d(stored.shape[1], (side, side)), atol=1e-3)


def _fill(vit: ViT, matched: BackboneWeights, facts: Facts) -> None:
    """Load matched weights into a backbone, in place."""
    own = vit.state_dict()
    vit.load_state_dict({**{k: own[k] for k in matched.kept}, **matched.state})
    vit.stored_position = matched.position
    vit.base, vit.license = facts.base, facts.license
    same = bool(facts.bands) and same_bands(facts.bands, vit.patch_embed.bands)
    vit.normalization = facts.normalization if same else None


def _match(
    vit: ViT,
    stored: StoredWeights,
    converted: Converted,
    fresh: Sequence[str],
    patch_embed_init: Literal['random', 'wavelength'] = 'random',
) -> BackboneWeights:
    """Match weights to a backbone without changing it; it may be on the meta device."""
    (backbone, parts, layout), source, own = converted, stored.source, vit.state_dict()
    _check_family(backbone, vit, source)
    state = fit_bias(backbone, own)
    left_out = [k for k in parts if not k.startswith(_OBJECTIVES)]
    if 'mask_token' in state:
        state['mask_token'] = state['mask_token'].reshape(1, -1)
        if vit.mask_token is None:
            left_out.append('mask_token')
            del state['mask_token']
    position = state.get('pos_embed')
    notes = _fit_position(state, vit, source)
    fixed = [k for k in _FIXED if vit.patch_embed.slot_dim and k in own and k not in state]
    notes += [f'fixed codes of the tokenizer: {", ".join(fixed)}'] if fixed else []
    bands, reads = stored.facts.bands, vit.patch_embed.bands
    other = bool(bands) and not same_bands(bands, reads)
    if other and 'patch_embed' not in fresh:
        raise ValueError(
            f'{source} was trained on bands {", ".join(bands)}, but the model expects {", ".join(reads)}: '
            'select the same bands in the same order, or train a new patch embedding (extra: patch_embed)'
        )
    # Filters of other bands are no useful start, even if their number is the same.
    dropped = {k for k in state if other and _below(k, ['patch_embed'])}
    fits = {k for k, v in state.items() if k in own and v.shape == own[k].shape and k not in dropped}
    anew = [k for k in own if _below(k, fresh) and k not in fixed and k not in fits]
    dropped |= {k for k in state if _below(k, fresh) and k not in fits}
    found = {}
    if patch_embed_init == 'wavelength' and any(_below(k, ['patch_embed']) for k in anew):
        bands = bands if other else RGB
        found = patch_embed_by_wavelength(state, bands, vit.patch_embed)
        notes.append(f'patch embedding from the filters of {", ".join(bands)} by wavelength')
    state = {k: v for k, v in state.items() if k not in dropped} | {k: found[k] for k in anew if k in found}
    if vit.mask_token is not None and 'mask_token' not in state:
        anew.append('mask_token')
    random = [k for k in anew if k not in state]
    notes += [f'newly initialized: {", ".join(random)}'] if random else []
    kept = (*fixed, *random)
    if 'norm.weight' in own.keys() - state.keys() and any(k.endswith('fc_norm.weight') for k in parts):
        raise ValueError(
            f'{source} was fine-tuned with average pooling of patches before the norm: build the backbone '
            'with final_norm=False and load fc_norm into its head'
        )
    if wrong := differences(state, {k: v for k, v in own.items() if k not in kept}):
        raise ValueError(
            f'{source} does not match a ViT of width {vit.embed_dim} and {vit.depth} blocks, it {wrong}: use '
            'the backbone, patch size and bands of the weights'
        )
    notes += [f'left out: {_summary(left_out)}'] if left_out else []
    paired = getattr(vit.patch_embed, 'satmae_band_pairing', True)
    if layout.endswith('satmae group-channel') and 'decoder.pred.0.weight' in parts and not paired:
        notes.append('its decoder pairs bands as SatMAE does: set satmae_band_pairing to train it')
    report = f'{source}: {layout} layout, {len(state)} of {len(own)} tensors matched'
    if vit.pos_embed is None or position is None or 'pos_embed' not in state:
        position = None if vit.pos_embed is None else torch.empty(0)
    parts = {k: v for k, v in parts.items() if k.startswith(_OBJECTIVES)}
    check_values({**state, **parts}, source)
    return BackboneWeights(state, parts, '; '.join([report, *notes]), tuple(anew), position, kept)


def _check_family(state: Mapping[str, Tensor], vit: ViT, source: str) -> None:
    """Check that weights and model agree in the kind of positions and the number of registers."""
    rotary = any('.gamma_1' in k for k in state)
    theirs, mine = (
        f'{"rotary positions" if turns else "a position table"} and {count} register tokens'
        for turns, count in (
            (rotary, register_count(state)),
            (vit.rope is not None, vit.num_prefix_tokens - 1),
        )
    )
    if theirs != mine and (rotary or 'pos_embed' in state):
        name = backbone_name(state) or 'such as vit_small_patch14_reg4_dinov2 or vit_small_patch16_dinov3'
        raise ValueError(f'{source} has {theirs}, but the model has {mine}: use its own model, {name}')


def _below(key: str, modules: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f'{name}.') for name in modules)


def _summary(keys: Sequence[str]) -> str:
    """Return names, or counts by first component if there are many."""
    counts = Counter(k.split('.')[0] for k in keys)
    return ', '.join(keys if len(keys) <= 4 else (f'{name} ({count})' for name, count in counts.items()))


def _fit_position(state: dict[str, Tensor], vit: ViT, source: str) -> list[str]:
    """Resample stored positions, class token first, to the model's grid, in place; return notes."""
    stored = state.get('pos_embed')
    if stored is None or vit.pos_embed is None or stored.shape == vit.pos_embed.shape:
        return []
    if vit.patch_embed.slot_dim and stored.shape[-1] == vit.embed_dim:
        del state['pos_embed']  # slot codes now take up part of the width
        return []
    side = grid_side(stored)
    if not side or stored.shape[2] != vit.pos_embed.shape[2]:
        raise ValueError(
            f'{source} contains positions of shape {tuple(stored.shape)}, but the model expects '
            f'{tuple(vit.pos_embed.shape)}: use the backbone and tokenizer of the weights'
        )
    grid = vit.patch_embed.grid_size
    state['pos_embed'] = fit_position(stored, grid)
    return [f'positions resampled from {side}x{side} to {grid[0]}x{grid[1]}']


def describe_weights(weights: WeightsEnum | str | Path) -> dict[str, str]:
    """Describe weights from any source of `read_weights`, in rows of title and text.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If it cannot be read or is not a ViT.
    """
    stored = read_weights(weights, values=False)
    (state, parts, layout), facts, source = _converted(stored), stored.facts, stored.source
    filters = sorted((k, v) for k, v in state.items() if k.startswith('patch_embed.proj') and v.ndim == 4)
    side, rotary = grid_side(state.get('pos_embed')), 'blocks.0.gamma_1' in state
    if not filters or not (rotary or side):
        raise ValueError(f'{source} is not a complete ViT: it has no patch embedding or no positions')
    width, patch = filters[0][1].shape[0], filters[0][1].shape[-1]
    depth, counts = depth_of(state), [v.shape[1] for _, v in filters]
    registers = register_count(state)
    others = Counter(k.split('.')[0] for k in parts if not k.startswith('decoder.'))
    tokenizer, decoder = facts.tokenizer, 'none'
    if 'patch_embed.channel_embed' in state:
        tokenizer = f'group-channel, groups of {", ".join(map(str, counts))} bands'
    elif side and state['pos_embed'].shape[-1] < width:
        tokenizer = 'temporal'
    embed = parts.get('decoder.embed.weight')
    if embed is not None and embed.ndim == 2:
        decoder = f'width {embed.shape[0]}, {depth_of(parts, "decoder.blocks.")} blocks'
    rows = {
        'layout': layout,
        'backbone': facts.backbone or backbone_name(state) or 'unnamed size',
        'tokenizer': tokenizer,
        'bands': ', '.join(facts.bands) or f'{sum(counts)}, names not stated',
        'patch': f'{patch} px',
        'image size': 'any (rotary positions)' if rotary else f'{side * patch} px, {side}x{side} patches',
        'width, blocks': f'{width}, {depth}' + (f', {registers} registers' if registers else ''),
        'decoder': decoder,
        'parameters': f'{sum(v.numel() for v in state.values()):,} in the backbone',
        'beside': ', '.join(f'{k} ({n})' for k, n in others.items()) or 'none',
    }
    more = {k: getattr(facts, k) for k in ('license', 'publication', 'dataset', 'base')}
    return rows | {k: v for k, v in more.items() if v}
