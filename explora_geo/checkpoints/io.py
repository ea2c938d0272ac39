"""The only loader of backbone weights."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlparse

import torch
from torch import Tensor
from torchvision.models._api import WeightsEnum

from explora_geo.adaptation import merge_lora
from explora_geo.checkpoints.convert import convert
from explora_geo.checkpoints.files import read_state
from explora_geo.models import weights as shipped
from explora_geo.models.builders import create_vit
from explora_geo.models.position import resample_position
from explora_geo.models.vit import ViT

# Classifiers of fine-tuned checkpoints: not part of a backbone, left out and reported.
_HEADS = ('head.', 'head_dist.', 'fc_norm.', 'classifier.')


class BackboneWeights(NamedTuple):
    """What was read from a checkpoint.

    Attributes:
        state: Backbone tensors with our keys.
        parts: Tensors of the objective (`decoder.*`).
        report: One sentence: the layout, how many tensors matched, what was resampled or left out.
    """

    state: dict[str, Tensor]
    parts: dict[str, Tensor]
    report: str


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and float32 values of a state dict, whatever file it came from."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().float().contiguous()
        digest.update(f'{name}{tuple(tensor.shape)}'.encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def read_weights(weights: WeightsEnum | str | Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Tensors, metadata and name of any source of weights.

    Args:
        weights: A `WeightsEnum` or its name (`ViTTiny8_Weights.TINY_IMAGENET_MAE`), the path of a file,
            or `timm/<name>` for timm's hub.

    Returns:
        Tensors as the source holds them, its metadata (`bands` as JSON if stated), its name.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If the source cannot be read.
    """
    if isinstance(weights, str):
        group, _, member = weights.partition('.')
        weights = getattr(getattr(shipped, group, None), '__members__', {}).get(member, weights)
    if isinstance(weights, WeightsEnum):
        bands, model = weights.meta.get('bands'), weights.meta.get('model')
        meta = {'bands': json.dumps(list(bands))} if bands else {}
        meta |= {'backbone': model} if model else {}
        url = urlparse(weights.url)
        if url.scheme == 'file':
            state, found = read_state(unquote(url.path))
            return state, {**found, **meta}, str(weights)
        return weights.get_state_dict(progress=True, check_hash=True), meta, str(weights)
    text = str(weights)
    if text.startswith('timm/'):
        return timm_state(text.removeprefix('timm/')), {}, text
    state, meta = read_state(text)
    return state, meta, text


def timm_state(name: str, file: str | Path | None = None) -> dict[str, Tensor]:
    """Pre-trained weights by timm's name, from its hub or from a local file in the hub's format.

    Args:
        name: timm model with tag, such as `vit_base_patch16_224.mae`.
        file: Read this file instead of downloading.

    Returns:
        State dict with timm's keys, without a classifier.

    Raises:
        ValueError: If timm does not know the name or the weights cannot be fetched.
    """
    import timm  # heavy, and only needed for hub weights

    overlay: Any = {'pretrained_cfg_overlay': {'file': str(file)}} if file else {}
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0, **overlay)
    except Exception as error:  # timm, the hub client and the network raise many kinds
        first = str(error).split('\n')[0]
        raise ValueError(
            f'cannot get the weights timm/{name} ({first}): check the name with timm.list_models, and '
            'the network, or give the path of a downloaded file'
        ) from error
    return dict(model.state_dict())


def load_weights(vit: ViT, weights: WeightsEnum | str | Path, fresh: Sequence[str] = ()) -> BackboneWeights:
    """Load weights into a backbone; positions are resampled to its grid.

    Args:
        vit: Backbone to fill, in place.
        weights: A `WeightsEnum`, a file, or `timm/<name>`.
        fresh: Names of modules that may keep their random start where shapes or bands differ,
            such as `patch_embed`.

    Returns:
        What was read, with a report.

    Raises:
        FileNotFoundError: If a file does not exist.
        ValueError: If bands differ, a tensor is missing, unexpected or of another shape.
    """
    raw, meta, source = read_weights(weights)
    state, parts, layout = convert(raw)
    notes = []
    bands = list(vit.patch_embed.bands)
    stated: list[str] = json.loads(meta['bands']) if 'bands' in meta else bands
    other_bands = stated != bands
    if other_bands and 'patch_embed' not in fresh:
        raise ValueError(
            f'{source} was trained on the bands {", ".join(stated)}, the model reads {", ".join(bands)}: '
            'select the same bands in the same order, or train a new patch embedding (extra: patch_embed)'
        )
    left_out = [k for k in state if k.startswith(_HEADS)]
    if 'mask_token' in state and vit.mask_token is None:
        left_out.append('mask_token')
    state = {k: v for k, v in state.items() if k not in left_out}
    own = vit.state_dict()
    if 'pos_embed' in state and state['pos_embed'].shape != own['pos_embed'].shape:
        state['pos_embed'], note = _fit_position(state['pos_embed'], vit, source)
        notes.append(note)
    if other_bands:  # filters of other bands are no start, even where their number is the same
        state = {k: v for k, v in state.items() if not k.startswith('patch_embed.')}
    kept = [
        k
        for k, v in own.items()
        if any(k.startswith(f'{name}.') for name in fresh) and (k not in state or state[k].shape != v.shape)
    ]
    state = {k: v for k, v in state.items() if k not in kept}
    if vit.mask_token is not None and 'mask_token' not in state:
        kept.append('mask_token')
    _check(state, own, kept, source, vit)
    vit.load_state_dict({**{k: own[k] for k in kept}, **state})
    notes += [f'starting anew: {", ".join(kept)}'] if kept else []
    notes += [f'left out: {", ".join(left_out)}'] if left_out else []
    report = f'{source}: {layout} layout, {len(state)} of {len(own)} tensors matched'
    return BackboneWeights(state, parts, '; '.join([report, *notes]))


def _fit_position(stored: Tensor, vit: ViT, source: str) -> tuple[Tensor, str]:
    """Resample stored positions, class token first, to the grid of the model."""
    side = round((stored.shape[1] - 1) ** 0.5)
    if side**2 != stored.shape[1] - 1 or stored.shape[2] != vit.pos_embed.shape[2]:
        raise ValueError(
            f'{source} stores positions of shape {tuple(stored.shape)}, the model has '
            f'{tuple(vit.pos_embed.shape)}: give the backbone that the weights belong to'
        )
    grid = vit.patch_embed.grid_size
    patches = resample_position(stored[:, 1:], (side, side), grid)
    note = f'positions resampled from {side}x{side} to {grid[0]}x{grid[1]}'
    return torch.cat([stored[:, :1], patches], dim=1), note


def _check(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor], kept: Sequence[str], source: str, vit: ViT
) -> None:
    """Refuse anything but a full match."""
    missing = [k for k in own if k not in state and k not in kept]
    unexpected = [k for k in state if k not in own]
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
        **kwargs: Further arguments of `create_vit`.

    Returns:
        The backbone in evaluation mode.
    """
    from explora_geo.checkpoints import adapter as adapters  # adapter.py builds on this file

    vit = create_vit(name, **kwargs)  # type: ignore[arg-type]
    if adapter is None:
        load_weights(vit, weights)
        return vit.eval()
    header, _ = adapters.read_adapter(adapter)
    load_weights(vit, weights, fresh=header.explora_config.extra)
    adapters.apply_adapter(vit, adapter)
    merge_lora(vit)
    return vit.eval()
