"""Convert state dicts of other projects to ours: pure functions of keys and tensors.

Ours are timm's keys for the backbone, and `decoder.*` for MAE's decoder with patches in (c, p, q) order.
Of groups of bands, `patch_embed.proj.{g}` embeds and `decoder.pred.{g}` predicts group g.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

State = dict[str, Tensor]

# Hugging Face's names, as in published files and as in transformers 5, and ours.
_HUGGING_FACE = (
    (r'^vit\.embeddings\.patch_embeddings\.projection\.', 'patch_embed.proj.'),
    (r'^vit\.embeddings\.position_embeddings$', 'pos_embed'),
    (r'^vit\.embeddings\.', ''),
    (r'^vit\.(?:encoder\.layer|layers)\.', 'blocks.'),
    (r'^vit\.layernorm\.', 'norm.'),
    (r'^decoder\.decoder_layers\.', 'decoder.decoder_blocks.'),
    (r'\.attention\.attention\.query\.', '.attn.q_proj.'),
    (r'\.attention\.attention\.key\.', '.attn.k_proj.'),
    (r'\.attention\.attention\.value\.', '.attn.v_proj.'),
    (r'\.attention\.(?:output\.dense|o_proj)\.', '.attn.proj.'),
    (r'\.attention\.', '.attn.'),
    (r'\.intermediate\.dense\.', '.mlp.fc1.'),
    (r'\.output\.dense\.', '.mlp.fc2.'),
    (r'\.layernorm_before\.', '.norm1.'),
    (r'\.layernorm_after\.', '.norm2.'),
)
_SPLIT = re.compile(r'(?P<attn>.*\.attn\.)(?P<part>[qkv])_proj\.(?P<kind>weight|bias)')


class Converted(NamedTuple):
    """A state dict with our keys.

    Attributes:
        backbone: Tensors of the ViT.
        parts: All other tensors: `decoder.*` of MAE, heads, what a trainer kept beside the backbone.
        layout: Name of the layout that was recognized.
    """

    backbone: State
    parts: State
    layout: str


def convert(state: Mapping[str, Tensor]) -> Converted:
    """Convert a state dict of any known layout to our keys.

    Args:
        state: Tensors by name, as the file holds them.

    Returns:
        Backbone, other parts, and the name of the layout.

    Raises:
        ValueError: If the file is of a kind that cannot be a backbone.
    """
    refused = _refusal(state)
    if refused:
        raise ValueError(refused)
    ours = dict(state)
    try:
        layout = recognize(state)
        for step in (from_hugging_face, from_trainer, from_dinov2, fuse_qkv, from_mae, from_satmae):
            ours = step(ours)
    except (IndexError, KeyError, RuntimeError) as error:  # of torch and einops, about shapes
        first = str(error).strip().split('\n')[0]
        raise ValueError(
            f'its tensors have the names of a ViT, but not all of them or other shapes ({first})'
        ) from error
    parts = {k: v for k, v in ours.items() if not _is_backbone(k)}
    return Converted({k: v for k, v in ours.items() if k not in parts}, parts, layout)


def recognize(state: Mapping[str, Tensor]) -> str:
    """Name of the layout of a state dict.

    Args:
        state: Tensors by name.

    Returns:
        `timm`, which encoder-only files of MAE and ExPLoRA share, or `dinov2`, `mae`,
        `satmae group-channel`, `satmae temporal`, `explora` (the official code's split attention),
        `hugging face`, `explora_geo`; after the prefix of a trainer if there is one.
    """
    if any(k.endswith('embeddings.cls_token') for k in state):
        return 'hugging face'
    root = _root(state)
    inner = {k.removeprefix(root): v for k, v in state.items() if k.startswith(root)}
    name = _recognize_plain(inner, state)
    return f'{name} inside {root.rstrip(".")}' if root else name


def _recognize_plain(state: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> str:
    official = 'explora ' if any(_SPLIT.fullmatch(k) for k in whole) else ''
    if 'channel_embed' in state:
        return f'{official}satmae group-channel'
    if 'patch_embed.channel_embed' in state or any(k.endswith('decoder.pred.weight') for k in whole):
        return 'explora_geo'
    pos, cls = state.get('pos_embed'), state.get('cls_token')
    if pos is not None and cls is not None and pos.shape[-1] < cls.shape[-1]:
        return f'{official}satmae temporal'
    if any(k.endswith('decoder_pred.weight') for k in whole):
        return f'{official}mae'
    if official:
        return official.strip()
    return 'dinov2' if 'mask_token' in state else 'timm'


def _refusal(state: Mapping[str, Tensor]) -> str:
    """Why this cannot be a backbone, or an empty string."""
    if any('lora_a' in k.lower() or 'lora_b' in k.lower() for k in state):
        return (
            'the file holds LoRA updates that are not merged: merge them first (explora-geo adapter merge), '
            'or give the starting weights and the adapter file'
        )
    registers = next((k for k in state if k.endswith(('register_tokens', 'reg_token'))), None)
    if registers:
        return f'the file holds register tokens ({registers}), which our ViT has not: give weights without'
    if not any(k.endswith('cls_token') for k in state):
        return (
            'the file holds no class token, so it is no ViT that can be read; its first tensors are '
            + ', '.join(list(state)[:3])
        )
    return ''


def _is_backbone(key: str) -> bool:
    return key in ('cls_token', 'pos_embed', 'mask_token') or key.startswith(
        ('patch_embed.', 'blocks.', 'norm.')
    )


def _root(state: Mapping[str, Tensor]) -> str:
    """Prefix of the backbone's keys, such as `model.backbone.` in a trainer's file."""
    roots = [k.removesuffix('cls_token') for k in state if k.split('.')[-1] == 'cls_token']
    averaged = ('teacher', 'momentum', 'ema')
    return min(roots, key=lambda root: (any(a in root for a in averaged), len(root)), default='')


def from_trainer(state: State) -> State:
    """Strip the prefixes of a trainer's file (TorchGeo, Lightning, DINOv2's own).

    `model.backbone.blocks.0...` becomes `blocks.0...`, and `model.decoder...` beside it `decoder...`.
    """
    root = _root(state)
    if not root:
        return state
    path = root.rstrip('.').split('.')
    parents = [''.join(f'{p}.' for p in path[:i]) for i in range(len(path), -1, -1)]
    renamed: State = {}
    for key, value in state.items():
        parent = next(p for p in parents if key.startswith(p))
        name = key.removeprefix(parent)
        # A second backbone or anything else that looks like ours but is not below the root.
        renamed[name if parent == root or not _is_backbone(name) else f'beside.{name}'] = value
    return renamed


def from_dinov2(state: State) -> State:
    """DINOv2's names: blocks in chunks, `blocks.1.12...` to `blocks.12...`, and SwiGLU's `w12`, `w3`."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r'^blocks\.\d+\.(\d+)\.', r'blocks.\1.', key)
        key = re.sub(r'^(blocks\.\d+\.mlp\.)w12\.', r'\1fc1.', key)
        renamed[re.sub(r'^(blocks\.\d+\.mlp\.)w3\.', r'\1fc2.', key)] = value
    return renamed


def fuse_qkv(state: State) -> State:
    """Attention with separate `q_proj`, `k_proj`, `v_proj` (official ExPLoRA) to timm's fused `qkv`.

    Raises:
        ValueError: If a file holds both and they differ.
    """
    fused: State = {}
    for key, value in state.items():
        match = _SPLIT.fullmatch(key)
        if match is None:
            fused[key] = value
            continue
        name = f'{match["attn"]}qkv.{match["kind"]}'
        if match['part'] == 'q':
            parts = [state[f'{match["attn"]}{part}_proj.{match["kind"]}'] for part in 'qkv']
            joined = torch.cat(parts)
            both = name in state and not joined.is_meta
            if both and not torch.allclose(joined.float(), state[name].float(), atol=1e-4):
                raise ValueError(
                    f'{match["attn"]}qkv and the q_proj, k_proj, v_proj beside it differ: give the '
                    'encoder-only file, or one whose LoRA is merged'
                )
            fused.setdefault(name, joined)
    return fused


def from_mae(state: State) -> State:
    """A decoder with MAE's names to ours.

    The reference orders the pixels of a patch (p, q, c), we order them (c, p, q).
    """
    converted: State = {}
    for key, value in state.items():
        if key == 'mask_token' and any(k.startswith('decoder_') for k in state):
            key = 'decoder.mask_token'
        key = re.sub(r'^decoder[._]decoder_|^decoder_', 'decoder.', key)  # lightly nests MAE's names
        if key in ('decoder.pred.weight', 'decoder.pred.bias') and key not in state:
            channels = state['patch_embed.proj.weight'].shape[1]
            value = rearrange(value, '(pq c) ... -> (c pq) ...', c=channels)
        converted[key] = value
    return converted


def from_satmae(state: State) -> State:
    """SatMAE's names for groups of bands to ours; its group decoder orders pixels (c, p, q) as we do.

    The group code that classifiers add to the class token is folded into it: nothing else reads it.
    """
    if 'channel_embed' not in state:
        return state
    converted: State = {}
    for key, value in state.items():
        if key == 'channel_embed':
            key = 'patch_embed.channel_embed'
        elif key == 'decoder.channel_embed':  # theirs has the class token last
            key, value = 'decoder.slot_embed', torch.cat([value[:, -1:], value[:, :-1]], dim=1)
        converted[re.sub(r'^patch_embed\.(\d+)\.proj\.', r'patch_embed.proj.\1.', key)] = value
    code = converted.pop('channel_cls_embed', None)
    if code is not None:
        cls = converted['cls_token']
        converted['cls_token'] = cls + F.pad(code, (cls.shape[-1] - code.shape[-1], 0)).to(cls)
    return converted


def from_hugging_face(state: State) -> State:
    """ViTMAE of Hugging Face's transformers, in either of its spellings, to MAE's names."""
    if not any(k.endswith('embeddings.cls_token') for k in state):
        return state
    renamed: State = {}
    for key, value in state.items():
        key = key if key.startswith(('vit.', 'decoder.')) else f'vit.{key}'  # files of the encoder alone
        for pattern, ours in _HUGGING_FACE:
            key = re.sub(pattern, ours, key)
        renamed[key] = value
    return renamed
