"""RGB weights go into models of band groups and of frames, and their adapters come back."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import (
    load_backbone,
    load_weights,
    merge_adapter,
    read_adapter,
    read_state,
    save_adapter,
)
from explora_geo.checkpoints.adapter import put_adapter
from explora_geo.models import ViT, create_vit
from explora_geo.objectives import MAE

MODEL = 'vit_tiny_patch8_32'
CONFIG = ExPLoRAConfig.parse('[L]-r4')
KINDS: dict[str, dict[str, Any]] = {
    'group-channel': {'channel_groups': [['B04', 'B03'], ['B8A']]},
    'temporal': {'num_frames': 2},
}


def build(kind: str) -> ViT:
    return create_vit(MODEL, tokenizer=kind, tokenizer_options=KINDS[kind])


def inputs(kind: str) -> dict[str, Tensor]:
    if kind == 'temporal':
        return {'image': torch.randn(2, 2, 3, 32, 32), 'timestamps': torch.randint(0, 12, (2, 2, 3))}
    return {'image': torch.randn(2, 3, 32, 32)}


def test_the_blocks_are_filled_and_the_codes_stay_the_tokenizers(base_file: Path, base_state: Any) -> None:
    for kind in KINDS:
        vit = build(kind)
        codes = vit.pos_embed.clone()
        loaded = load_weights(vit, base_file, fresh=vit.patch_embed.fresh)
        assert torch.equal(vit.blocks[1].attn.qkv.weight, base_state['blocks.1.attn.qkv.weight'])
        assert (
            torch.equal(vit.pos_embed, codes) and 'fixed codes of the tokenizer: pos_embed' in loaded.report
        )
        embeddings = [k for k in loaded.anew if k.startswith('patch_embed.proj')]
        assert len(embeddings) == (4 if kind == 'group-channel' else 0) == len(loaded.anew)
    assert torch.equal(vit.patch_embed.proj.weight, base_state['patch_embed.proj.weight'])


def test_embeddings_of_other_bands_must_be_allowed_to_start_anew(base_file: Path) -> None:
    with pytest.raises(ValueError, match=r'is missing patch_embed\.proj\.0\.weight'):
        load_weights(build('group-channel'), base_file)


def test_embeddings_start_from_the_rgb_filters_by_wavelength(base_file: Path, base_state: Any) -> None:
    vit = build('group-channel')
    loaded = load_weights(vit, base_file, vit.patch_embed.fresh, 'wavelength')
    assert 'patch embedding from the filters of red, green, blue by wavelength' in loaded.report
    assert 'newly initialized' not in loaded.report
    expected = 3 * base_state['patch_embed.proj.weight'][:, 0]  # B8A: red is nearest
    torch.testing.assert_close(vit.patch_embed.proj[1].weight[:, 0], expected)
    assert 'patch_embed.proj.1.weight' in loaded.anew  # and it must train


def test_the_decoder_of_rgb_weights_predicts_new_groups_anew(base_file: Path) -> None:
    vit = build('group-channel')
    loaded = load_weights(vit, base_file, vit.patch_embed.fresh)
    mae = MAE(vit, decoder_num_heads=2)
    assert mae.load_pretrained(loaded.parts).endswith('adapted as []-r32; its prediction layer starts random')
    trained = {n.split('.')[0] for n, p in mae.decoder.named_parameters() if p.requires_grad}
    assert trained == {'blocks', 'norm', 'pred'}
    temporal = build('temporal')
    mae = MAE(temporal, decoder_num_heads=2)
    report = mae.load_pretrained(load_weights(temporal, base_file).parts)
    assert report.endswith('adapted as []-r8')


@torch.no_grad()
@pytest.mark.parametrize('kind', KINDS)
def test_adapters_state_their_tokenizer_and_rebuild_the_model(
    base_file: Path, tmp_path: Path, kind: str
) -> None:
    vit = build(kind)
    load_weights(vit, base_file, fresh=vit.patch_embed.fresh)
    config = replace(CONFIG, extra=vit.patch_embed.fresh)
    explora(vit, config)
    for parameter in vit.parameters():
        if parameter.requires_grad:
            parameter += 0.1 * torch.randn_like(parameter)
    save_adapter(tmp_path / 'adapter.safetensors', vit.eval(), MODEL, config)
    header, _ = read_adapter(tmp_path / 'adapter.safetensors')
    assert header.tokenizer == kind and header.tokenizer_options == vit.patch_embed.options
    example = inputs(kind)
    expected = vit(**example)
    again = load_backbone(MODEL, base_file, tmp_path / 'adapter.safetensors')  # nothing else is asked
    torch.testing.assert_close(again(**example).patches, expected.patches, atol=1e-5, rtol=0)
    merge_adapter(tmp_path / 'adapter.safetensors', base_file, tmp_path / 'merged.safetensors')
    assert kind in read_state(tmp_path / 'merged.safetensors')[1]['tokenizer']
    merged = load_backbone(
        MODEL, tmp_path / 'merged.safetensors', tokenizer=kind, tokenizer_options=KINDS[kind]
    )
    torch.testing.assert_close(merged(**example).cls, expected.cls, atol=1e-5, rtol=0)
    other = build(kind)
    load_weights(other, base_file, fresh=other.patch_embed.fresh)
    put_adapter(other, *read_adapter(tmp_path / 'adapter.safetensors'), 'adapter.safetensors')


def test_group_codes_are_the_same_on_every_build() -> None:
    states = [build('group-channel').state_dict()['patch_embed.channel_embed'] for _ in range(2)]
    assert torch.equal(states[0], states[1])
