"""Backbones of DINOv2 and DINOv3 as folders that Hugging Face's transformers loads."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explora_geo.checkpoints.export import plain_state
from explora_geo.checkpoints.files import atomic_path, write_state
from explora_geo.models.vit import ViT

# Our names and those of published files, which every version of transformers reads
_COMMON = (
    (r'^(cls_token|mask_token)$', r'embeddings.\1'),
    (r'^reg_token$', 'embeddings.register_tokens'),
    (r'\.ls([12])\.gamma$', r'.layer_scale\1.lambda1'),
    (r'\.gamma_([12])$', r'.layer_scale\1.lambda1'),
)
_DINOV2 = (
    (r'^patch_embed\.proj\.', 'embeddings.patch_embeddings.projection.'),
    (r'^pos_embed$', 'embeddings.position_embeddings'),
    (r'^blocks\.', 'encoder.layer.'),
    (r'\.attn\.q\.', '.attention.attention.query.'),
    (r'\.attn\.k\.', '.attention.attention.key.'),
    (r'\.attn\.v\.', '.attention.attention.value.'),
    (r'\.attn\.proj\.', '.attention.output.dense.'),
    (r'^norm\.', 'layernorm.'),
)
_DINOV3 = (
    (r'^patch_embed\.proj\.', 'embeddings.patch_embeddings.'),
    (r'^blocks\.', 'layer.'),
    (r'\.attn\.([qkv])\.', r'.attention.\1_proj.'),
    (r'\.attn\.([qv])_bias$', r'.attention.\1_proj.bias'),
    (r'\.attn\.proj\.', '.attention.o_proj.'),
    (r'\.mlp\.fc1\.', '.mlp.up_proj.'),
    (r'\.mlp\.fc2\.', '.mlp.down_proj.'),
)


def export_transformers(vit: ViT, out: str | Path) -> str:
    """Write a backbone as `config.json` and `model.safetensors` of Hugging Face's transformers.

    Args:
        vit: Backbone of DINOv2 or DINOv3 without LoRA.
        out: Folder to write; `from_pretrained(out)` of the class takes it.

    Returns:
        The class of transformers that loads it.

    Raises:
        ValueError: If transformers has no such model.
    """
    state = plain_state(vit)
    scaled = any(k.endswith(('.ls1.gamma', '.gamma_1')) for k in state)
    if vit.patch_embed.kind != 'patch' or not scaled or 'norm.weight' not in state:
        raise ValueError(
            'the format transformers is for backbones of DINOv2 and DINOv3 that read patches: write '
            '.safetensors for timm, or a program, .pt2 or .onnx'
        )
    name, config = _config(vit, state)
    gated = config.get('use_swiglu_ffn', False)
    shape = (1, 1, -1) if vit.rope is not None else (1, -1)
    state['mask_token'] = state.get('mask_token', torch.zeros(vit.embed_dim)).reshape(shape)
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        parts = {key: value}
        if '.attn.qkv.' in key:
            names = [key.replace('qkv', part) for part in 'qkv']
            parts = dict(zip(names, value.chunk(3), strict=True))
        for own, tensor in parts.items():
            for pattern, theirs in (*_COMMON, *(_DINOV2 if vit.rope is None else _DINOV3)):
                own = re.sub(pattern, theirs, own)
            if gated:
                own = own.replace('.mlp.fc1.', '.mlp.weights_in.').replace('.mlp.fc2.', '.mlp.weights_out.')
            named[own] = tensor.contiguous()
    folder = Path(out)
    write_state(folder / 'model.safetensors', named, {'format': 'pt'})
    with atomic_path(folder / 'config.json') as temporary:
        temporary.write_text(json.dumps(config, indent=1), encoding='utf-8')
    return name


def _config(vit: ViT, state: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Class of transformers, and what its configuration says."""
    tokenizer, block = vit.patch_embed, vit.blocks[0]
    config: dict[str, Any] = {
        'hidden_size': vit.embed_dim,
        'num_hidden_layers': vit.depth,
        'num_attention_heads': block.attn.num_heads,  # type: ignore[union-attr]
        'image_size': tokenizer.img_size,
        'patch_size': tokenizer.patch_size,
        'num_channels': len(tokenizer.bands),
        'layer_norm_eps': vit.norm.eps,
    }
    registers = vit.num_prefix_tokens - 1
    if vit.rope is not None:
        name, kind = 'DINOv3ViTModel', 'dinov3_vit'
        bias = 'blocks.0.attn.q_bias' in state
        config |= {
            'intermediate_size': len(state['blocks.0.mlp.fc1.bias']),
            'rope_theta': vit.rope.config.base,
        }
        config |= {'query_bias': bias, 'key_bias': False, 'value_bias': bias}
    else:
        name, kind = (
            ('Dinov2WithRegistersModel', 'dinov2_with_registers') if registers else ('Dinov2Model', 'dinov2')
        )
        hidden = state['blocks.0.mlp.fc2.weight'].shape[1]
        config |= {'use_swiglu_ffn': hidden != len(state['blocks.0.mlp.fc1.bias']), 'mlp_ratio': 4}
    if registers:
        config['num_register_tokens'] = registers
    return name, {'architectures': [name], 'model_type': kind, **config}
