"""The analysis finds what is put into the features."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.tables.analyse import attention_maps, find_models, halves, read_images, write_analysis
from explora_geo.checkpoints import model_metadata, write_state
from explora_geo.models import ViT


def test_early_blocks_know_the_place_of_a_patch(build_vit: Callable[..., ViT], images: Tensor) -> None:
    vit = build_vit()
    with torch.no_grad():
        vit.pos_embed *= 20  # says little else than where a patch is
    label = torch.arange(8) % 2
    blocks = halves(vit, images, label)
    assert len(blocks) == 3 and blocks[0].position > 0.9
    assert all(b.eigenvalue_mean > 0 and b.eigenvalue_variance > 0 and 0 <= b.label <= 1 for b in blocks)


def test_attention_is_that_of_the_blocks_own_layer(build_vit: Callable[..., ViT], images: Tensor) -> None:
    vit = build_vit(depth=2)
    maps = attention_maps(vit, images, [0, -1])
    assert maps.shape == (2, 8, 4, 4) and (maps > 0).all() and (maps.sum((-2, -1)) < 1).all()
    # By hand: the class token's queries against all keys of the first block, before values.
    with torch.no_grad():
        x, _ = vit.embed(images)
        block = vit.blocks[0]
        q, k, _v = block.attn.qkv(block.norm1(x)).unflatten(-1, (3, 2, 16)).unbind(2)
        weights = torch.einsum('bhd,bnhd->bhn', q[:, 0] / 4, k).softmax(-1).mean(1)
    torch.testing.assert_close(maps[0].flatten(1), weights[:, 1:])


def test_models_share_one_figure(
    build_vit: Callable[..., ViT], tiles: Path, tmp_path: Path, small_names: None
) -> None:
    from explora_geo.models import create_vit

    for name in ('one', 'two'):
        vit = create_vit('vit_tiny_patch8_32')
        write_state(
            tmp_path / f'{name}.safetensors', vit.state_dict(), model_metadata(vit, 'vit_tiny_patch8_32')
        )
    names = [f'{n}={tmp_path / n}.safetensors' for n in ('one', 'two')]
    models = find_models(names, tmp_path / 'none.jsonl', tmp_path, None)
    image, label, pictures = read_images(tiles, 12, models['one'])
    assert image.shape == (12, 3, 32, 32) and pictures.max() <= 1
    files = write_analysis(tmp_path / 'out', models, image, label, pictures, shown=2)
    content = json.loads(files[0].read_text())
    assert list(content['models']) == ['one', 'two'] and len(content['models']['one']) == 3
    assert Image.open(files[1]).width > 1000


def test_bad_input_is_named(build_vit: Callable[..., ViT], images: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='at least four images of two classes'):
        halves(build_vit(), images, torch.zeros(8, dtype=torch.long))
    with pytest.raises(ValueError, match="'3:l' is neither NAME=FILE nor a row with results"):
        find_models(['3:l'], tmp_path / 'none.jsonl', tmp_path, None)
