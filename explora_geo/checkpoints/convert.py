"""Convert state dicts of other projects to ours, by pure functions of keys and tensors.

We use timm's keys for the backbone, and `decoder.*` for MAE's decoder with patches in (c, p, q) order.
For groups of bands, `patch_embed.proj.{g}` embeds and `decoder.pred.{g}` predicts group g.
"""

import re
from collections.abc import Mapping
from math import isqrt
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from explora_geo.checkpoints.files import first_line
from explora_geo.models.builders import size_name
from explora_geo.models.position import RotaryConfig

State = dict[str, Tensor]

# Hugging Face's names by those of the authors; a leading dot marks part of a name.
_DINOV2 = {
    **{token: f'embeddings.{token}' for token in ('cls_token', 'mask_token')},
    'reg_token': 'embeddings.register_tokens',
    'pos_embed': 'embeddings.position_embeddings',
    'patch_embed.proj.': 'embeddings.patch_embeddings.projection.',
    'blocks.': 'encoder.layer.',
    'norm.': 'layernorm.',
    '.attn.q_proj.': '.attention.attention.query.',
    '.attn.k_proj.': '.attention.attention.key.',
    '.attn.v_proj.': '.attention.attention.value.',
    '.attn.proj.': '.attention.output.dense.',
    '.ls1.gamma': '.layer_scale1.lambda1',
    '.ls2.gamma': '.layer_scale2.lambda1',
}
_GATED = {'.mlp.fc1.': '.mlp.weights_in.', '.mlp.fc2.': '.mlp.weights_out.'}
_DINOV3 = {
    **{k: v for k, v in _DINOV2.items() if k.endswith(('_token', '.gamma'))},
    'patch_embed.proj.': 'embeddings.patch_embeddings.',
    'blocks.': 'layer.',
    '.attn.proj.': '.attention.o_proj.',
    **{f'.attn.{part}_proj.': f'.attention.{part}_proj.' for part in 'qkv'},
    '.mlp.fc1.': '.mlp.up_proj.',
    '.mlp.fc2.': '.mlp.down_proj.',
}
# Other spellings of ViTMAE and later versions of transformers.
_SPELLINGS = {
    'embeddings.': '',
    'layers.': 'blocks.',
    'model.layer.': 'blocks.',
    'decoder.decoder_layers.': 'decoder.decoder_blocks.',
    '.attention.': '.attn.',
    '.intermediate.dense.': '.mlp.fc1.',
    '.output.dense.': '.mlp.fc2.',
    '.mlp.gate_proj.': '.mlp.fc1.',
    '.layernorm_before.': '.norm1.',
    '.layernorm_after.': '.norm2.',
}
_READ = {theirs: ours for names in (_DINOV2, _GATED, _DINOV3) for ours, theirs in names.items()} | _SPELLINGS
# Spellings of DINOv2 (blocks in chunks, gated MLPs, registers), MAE (whose names lightly nests) and SatMAE
_PATTERNS = [
    (re.compile(theirs), ours)
    for theirs, ours in (
        (r'^blocks\.\d+\.(\d+)\.', r'blocks.\1.'),
        (r'^(blocks\.\d+\.mlp\.)w12\.', r'\1fc1.'),
        (r'^(blocks\.\d+\.mlp\.)w3\.', r'\1fc2.'),
        (r'^(register|storage)_tokens$', 'reg_token'),
        (r'^decoder[._]decoder_|^decoder_', 'decoder.'),
        (r'^decoder\.channel_embed$', 'decoder.slot_embed'),
        (r'^channel_embed$', 'patch_embed.channel_embed'),
        (r'^patch_embed\.(\d+)\.proj\.', r'patch_embed.proj.\1.'),
    )
]
_SPLIT = re.compile(r'(?P<attn>.*\.attn\.)(?P<part>[qkv])_proj\.(?P<kind>weight|bias)')


class Converted(NamedTuple):
    """A state dict with our keys."""

    backbone: State  # tensors of the ViT
    parts: State  # all others: `decoder.*` of MAE, heads, other parts of the trainer
    layout: str  # from `recognize`


def convert(state: Mapping[str, Tensor]) -> Converted:
    """Convert a state dict in any known layout to our keys; raise ValueError if it cannot be a backbone."""
    if any('lora_a' in k.lower() or 'lora_b' in k.lower() for k in state):
        raise ValueError(
            'the file contains unmerged LoRA updates: merge them first (explora-geo adapter merge), or pass '
            'the starting weights and the adapter file'
        )
    if not any(k.endswith('cls_token') for k in state):
        raise ValueError(
            'the file has no class token, so it is not a supported ViT; its first tensors are '
            + ', '.join(list(state)[:3])
        )
    ours = dict(state)
    try:
        layout = recognize(state)
        for step in _STEPS:
            ours = step(ours)
    except (IndexError, KeyError, RuntimeError) as error:  # shape errors of torch and einops
        raise ValueError(
            f'its tensors are named as in a ViT, but some are missing or misshapen ({first_line(error)})'
        ) from error
    parts = {k: v for k, v in ours.items() if not _is_backbone(k)}
    return Converted({k: v for k, v in ours.items() if k not in parts}, parts, layout)


def recognize(state: Mapping[str, Tensor]) -> str:
    """Return the name of a state dict's layout, with the trainer's prefix if there is one.

    `timm` (also encoder-only files of MAE and ExPLoRA), `dinov2`, `dinov3`, `mae`, `satmae temporal`,
    `satmae group-channel`, `explora` (the official code's split attention), `hugging face`, `explora_geo`.
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
    if 'storage_tokens' in state:
        return 'dinov3'
    return 'dinov2' if 'mask_token' in state or 'register_tokens' in state else 'timm'


def _is_backbone(key: str) -> bool:
    return key in ('cls_token', 'reg_token', 'pos_embed', 'mask_token') or key.startswith(
        ('patch_embed.', 'blocks.', 'norm.')
    )


def _root(state: Mapping[str, Tensor]) -> str:
    """Return the prefix of the backbone's keys, such as `model.backbone.` in a trainer's file."""
    roots = [k.removesuffix('cls_token') for k in state if k.split('.')[-1] == 'cls_token']
    averaged = ('teacher', 'momentum', 'ema')
    return min(roots, key=lambda root: (any(a in root for a in averaged), len(root)), default='')


def dino_name(state: Mapping[str, Tensor]) -> str | None:
    """Return the backbone name of DINOv2 and DINOv3 files in any layout, which never state it."""
    if not any(k.endswith(('.ls1.gamma', '.gamma_1', '.layer_scale1.lambda1')) for k in state):
        return None
    try:
        return backbone_name(convert({k: v.to('meta') for k, v in state.items()}).backbone)
    except ValueError:  # reported when the weights are loaded
        return None


def backbone_name(state: Mapping[str, Tensor]) -> str | None:
    """Return the name of a backbone from its tensors with our keys, if its size has one."""
    filters = next((v for k, v in state.items() if k.startswith('patch_embed.proj') and v.ndim == 4), None)
    size = None if filters is None else size_name(filters.shape[0], depth_of(state))
    side = grid_side(state.get('pos_embed'))
    if filters is None or size is None or ('pos_embed' in state and not side):
        return None
    patch = filters.shape[-1]
    if not side:
        return f'vit_{size}_patch{patch}_dinov3{"_qkvb" if "blocks.0.attn.q_bias" in state else ""}'
    registers = f'reg{register_count(state)}_' if 'reg_token' in state else ''
    return f'vit_{size}_patch{patch}_{registers}{"dinov2" if "blocks.0.ls1.gamma" in state else side * patch}'


def grid_side(position: Tensor | None) -> int:
    """Return the patches per side of stored positions, class token first; 0 if the grid is not square."""
    if position is None or position.ndim != 3 or position.shape[0] != 1 or position.shape[1] < 2:
        return 0
    side = isqrt(position.shape[1] - 1)
    return side if side**2 + 1 == position.shape[1] else 0


def register_count(state: Mapping[str, Tensor]) -> int:
    """Return the number of register tokens."""
    token = state.get('reg_token')
    return token.shape[1] if token is not None and token.ndim == 3 else 0


def depth_of(state: Mapping[str, Tensor], prefix: str = 'blocks.') -> int:
    """Return the number of blocks under a prefix."""
    return len({k.removeprefix(prefix).split('.')[0] for k in state if k.startswith(prefix)})


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
        # A second backbone, or anything else that looks like ours outside the root.
        renamed[name if parent == root or not _is_backbone(name) else f'beside.{name}'] = value
    return renamed


def respell(state: State) -> State:
    """Rename DINOv2, MAE and SatMAE keys to ours, and reorder predicted pixels and slot codes."""
    mae = any(k.startswith('decoder_') for k in state)
    renamed: State = {}
    for key, value in state.items():
        name = 'decoder.mask_token' if mae and key == 'mask_token' else key
        for theirs, ours in _PATTERNS:
            name = theirs.sub(ours, name)
        if name != key and name in ('decoder.pred.weight', 'decoder.pred.bias'):  # theirs are (p, q, c)
            channels = state['patch_embed.proj.weight'].shape[1]
            value = rearrange(value, '(pq c) ... -> (c pq) ...', c=channels)
        elif name != key and name == 'decoder.slot_embed':  # theirs has the class token last
            value = value.roll(1, dims=1)
        renamed[name] = value
    position = renamed.get('pos_embed')
    # With registers, timm folds the class token's position into the token: ours is zero then.
    if position is not None and 'reg_token' in renamed and isqrt(position.shape[1]) ** 2 == position.shape[1]:
        renamed['pos_embed'] = F.pad(position, (0, 0, 1, 0))
    code = renamed.pop('channel_cls_embed', None)
    if code is not None:  # SatMAE's classifiers add it to the class token; nothing else reads it
        cls = renamed['cls_token']
        renamed['cls_token'] = cls + F.pad(code, (cls.shape[-1] - code.shape[-1], 0)).to(cls)
    return renamed


def from_dinov3(state: State) -> State:
    """Rename DINOv3 keys, which include no position table, to those of timm's `Eva`.

    The key bias is dropped: it was masked, and files hold NaN in its place. Rotation periods other than
    ours raise ValueError.
    """
    if 'pos_embed' in state or not any(k.endswith('.ls1.gamma') for k in state):
        return state
    renamed: State = {}
    for key, value in state.items():
        if key == 'rope_embed.periods' and not value.is_meta:
            steps = torch.arange(len(value)) / len(value)
            if not torch.allclose(value.float(), RotaryConfig.base**steps, rtol=0.02):  # some are in bfloat16
                raise ValueError('its rotary periods do not match those of DINOv3')
        if key.startswith(('rope_embed.', 'local_cls_norm.')) or key.endswith('.bias_mask'):
            continue
        if key.endswith('.attn.qkv.bias'):
            query, _, renamed[key.replace('qkv.bias', 'v_bias')] = value.chunk(3)
            key, value = key.replace('qkv.bias', 'q_bias'), query
        renamed[re.sub(r'\.ls([12])\.gamma$', r'.gamma_\1', key)] = value
    return renamed


def fit_bias(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> State:
    """Add zero query and value biases that a model, `own`, needs; drop zero ones that it lacks."""
    bias = ('.attn.q_bias', '.attn.v_bias')
    zeros = {k: torch.zeros(v.shape) for k, v in own.items() if k.endswith(bias) and k not in state}
    extra = {k: v for k, v in state.items() if k.endswith(bias) and k not in own}
    needless = {k for k, v in extra.items() if v.is_meta or not v.any()}
    blocks = any('.attn.qkv.weight' in k for k in state)
    return {**{k: v for k, v in state.items() if k not in needless}, **(zeros if blocks else {})}


def fuse_qkv(state: State) -> State:
    """Fuse separate `q_proj`, `k_proj`, `v_proj` (official ExPLoRA) into timm's `qkv`.

    Without a key bias (DINOv3), query and value biases stay separate, as `q_bias` and `v_bias`.
    Raises ValueError if a file holds both forms and they differ.
    """
    fused = {k: v for k, v in state.items() if not _SPLIT.fullmatch(k)}
    for attn, part, kind in (match.groups() for k in state if (match := _SPLIT.fullmatch(k))):
        name = f'{attn}qkv.{kind}'
        if kind == 'bias' and f'{attn}k_proj.bias' not in state:
            fused[f'{attn}{part}_bias'] = state[f'{attn}{part}_proj.bias']
        elif part == 'q':
            joined = torch.cat([state[f'{attn}{p}_proj.{kind}'] for p in 'qkv'])
            both = name in fused and not joined.is_meta
            if both and not torch.allclose(joined.float(), fused[name].float(), atol=1e-4):
                raise ValueError(
                    f'{attn}qkv does not match its q_proj, k_proj and v_proj: use the encoder-only file or '
                    'one with merged LoRA'
                )
            fused.setdefault(name, joined)
    return fused


def from_hugging_face(state: State) -> State:
    """Rename ViTMAE, Dinov2 and DINOv3 keys of Hugging Face, in any spelling, to those of the authors."""
    if not any(k.endswith('embeddings.cls_token') for k in state):
        return state
    gated = any(k.endswith('.mlp.gate_proj.weight') for k in state)
    renamed: State = {}
    for key, value in state.items():
        if gated and '.mlp.up_proj.' in key:  # joined with the gate
            continue
        if '.mlp.gate_proj.' in key:
            value = torch.cat([value, state[key.replace('gate_proj', 'up_proj')]])
        renamed[_rename(key.removeprefix('vit.'), _READ)] = value
    if 'mask_token' in renamed and 'decoder.mask_token' not in renamed:
        renamed['mask_token'] = renamed['mask_token'].reshape(1, -1)
    return renamed


def to_hugging_face(state: Mapping[str, Tensor], gated: bool = False) -> State:
    """Rename backbone keys to Dinov2's (gated MLPs optional) or, without a position table, to DINOv3's."""
    names = (_DINOV2 | (_GATED if gated else {})) if 'pos_embed' in state else _DINOV3
    renamed: State = {}
    for key, value in state.items():
        key = re.sub(r'\.gamma_([12])$', r'.ls\1.gamma', key)
        key = re.sub(r'\.([qv])_bias$', r'.\1_proj.bias', key)
        parts = {key: value}
        if '.attn.qkv.' in key:
            split = [key.replace('qkv', f'{part}_proj') for part in 'qkv']
            parts = dict(zip(split, value.chunk(3), strict=True))
        renamed |= {_rename(k, names): v.contiguous() for k, v in parts.items()}
    return renamed


def _rename(key: str, names: Mapping[str, str]) -> str:
    """Replace the longest names first: those with a leading dot anywhere, others at the start."""
    for old in sorted(names, key=len, reverse=True):
        if old.startswith('.'):
            key = key.replace(old, names[old])
        elif key.startswith(old):
            key = names[old] + key.removeprefix(old)
    return key


_STEPS = (from_hugging_face, from_trainer, respell, fuse_qkv, from_dinov3)
