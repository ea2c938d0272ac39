"""One loader for everyone's weights: it reports what it did, and refuses what does not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close
from torchvision.models._api import Weights, WeightsEnum

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import (
    files,
    load_backbone,
    load_weights,
    model_metadata,
    read_weights,
    save_adapter,
    state_sha256,
    write_state,
)
from explora_geo.checkpoints.sources import timm_state
from explora_geo.models import ViT, create_vit
from explora_geo.models import weights as shipped
from explora_geo.models.position import resample_position

Build = Callable[..., ViT]
State = dict[str, Tensor]


def save(state: State, path: Path, **metadata: str) -> Path:
    save_file(state, path, metadata=metadata)
    return path


@pytest.mark.parametrize('layout', ['mae', 'timm'])
def test_mae_files_load_with_and_without_a_decoder(
    build_vit: Build, encoder_state: State, mae_state: State, tmp_path: Path, layout: str
) -> None:
    state = mae_state if layout == 'mae' else encoder_state
    torch.save({'model': state}, tmp_path / 'mae.pth')
    vit = build_vit()
    loaded = load_weights(vit, tmp_path / 'mae.pth')
    assert f'{layout} layout, 42 of 42 tensors matched' in loaded.report
    assert bool(loaded.parts) == (layout == 'mae')
    assert all(torch.equal(v, state[k]) for k, v in vit.state_dict().items())


def test_a_dinov2_file_loads_with_its_mask_token_or_says_that_it_is_left_out(
    build_vit: Build, tmp_path: Path
) -> None:
    source = build_vit(init_values=1.0, mask_token=True)
    path = save(source.state_dict(), tmp_path / 'dinov2.safetensors')
    vit = build_vit(init_values=1.0, mask_token=True)
    assert 'dinov2 layout' in load_weights(vit, path).report
    assert torch.equal(vit.mask_token, source.mask_token)
    report = load_weights(build_vit(init_values=1.0), path).report
    assert 'left out: mask_token' in report


def test_a_mask_token_that_the_file_lacks_starts_anew(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    vit = build_vit(mask_token=True)
    loaded = load_weights(vit, save(encoder_state, tmp_path / 'mae.safetensors'))
    assert 'newly initialized: mask_token' in loaded.report


@pytest.mark.parametrize('size', [16, 24, 64])
def test_positions_are_resampled_to_the_grid_and_the_class_tokens_kept(
    build_vit: Build, encoder_state: State, tmp_path: Path, size: int
) -> None:
    path = save(encoder_state, tmp_path / 'mae.safetensors')
    vit = build_vit(img_size=size)
    loaded = load_weights(vit, path)
    grid = size // 8
    assert f'positions resampled from 4x4 to {grid}x{grid}' in loaded.report
    stored = encoder_state['pos_embed']
    assert torch.equal(vit.pos_embed[:, :1], stored[:, :1])
    expected = resample_position(stored[:, 1:], (4, 4), (grid, grid))
    assert torch.equal(vit.pos_embed[:, 1:], expected)
    vit(torch.randn(1, 3, size, size))


def test_classifiers_are_left_out_and_named(build_vit: Build, encoder_state: State, tmp_path: Path) -> None:
    state = {**encoder_state, 'head.weight': torch.randn(5, 32), 'head.bias': torch.randn(5)}
    loaded = load_weights(build_vit(), save(state, tmp_path / 'tuned.safetensors'))
    assert 'left out: head.bias, head.weight' in loaded.report and 'head.bias' not in loaded.state


def test_half_precision_files_load_in_full_precision(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    halves = {k: v.half() for k, v in encoder_state.items()}
    vit = build_vit()
    load_weights(vit, save(halves, tmp_path / 'half.safetensors'))
    assert vit.cls_token.dtype == torch.float32
    assert torch.equal(vit.norm.weight, halves['norm.weight'].float())


def test_other_bands_are_refused_with_both_lists(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    bands = json.dumps(['red', 'green', 'blue'])
    path = save(encoder_state, tmp_path / 'rgb.safetensors', bands=bands)
    load_weights(build_vit(), path)
    for other in (('blue', 'green', 'red'), ('nir', 'red', 'green', 'blue')):
        with pytest.raises(ValueError, match=f'red, green, blue, but the model expects {", ".join(other)}'):
            load_weights(build_vit(bands=other), path)


def test_other_bands_may_train_a_new_patch_embedding(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    bands = json.dumps(['red', 'green', 'blue'])
    path = save(encoder_state, tmp_path / 'rgb.safetensors', bands=bands)
    vit = build_vit(bands=('nir', 'red', 'green', 'blue'))
    before = vit.patch_embed.proj.weight.clone()
    loaded = load_weights(vit, path, fresh=['patch_embed'])
    assert 'newly initialized: patch_embed.proj.weight' in loaded.report
    assert torch.equal(vit.patch_embed.proj.weight, before)
    assert torch.equal(vit.blocks[2].mlp.fc2.bias, encoder_state['blocks.2.mlp.fc2.bias'])


def test_bands_of_the_same_number_but_other_names_do_not_keep_the_old_filters(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    path = save(encoder_state, tmp_path / 'rgb.safetensors', bands='["red", "green", "blue"]')
    vit = build_vit(bands=('nir', 'swir1', 'swir2'))
    before = vit.patch_embed.proj.weight.clone()
    loaded = load_weights(vit, path, fresh=['patch_embed'])
    assert torch.equal(vit.patch_embed.proj.weight, before)
    assert 'newly initialized: patch_embed.proj.weight' in loaded.report


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'norm.weight': None}, 'is missing norm.weight .1 missing, 0 unknown of 42 tensors'),
        ({'blocks.9.norm1.bias': torch.ones(32)}, 'contains unknown blocks.9.norm1.bias'),
        (
            {'norm.bias': torch.ones(31)},
            r'contains norm.bias of shape \(31,\), but the model expects \(32,\)',
        ),
        ({'cls_token': torch.full((1, 1, 32), torch.nan)}, 'non-finite values in cls_token'),
        ({'norm.bias': torch.full((32,), torch.inf)}, 'non-finite values in norm.bias'),
        ({'pos_embed': torch.ones(1, 12, 32)}, r'positions of shape \(1, 12, 32\)'),
        ({'pos_embed': torch.ones(1, 17, 16)}, r'positions of shape \(1, 17, 16\)'),
        ({'patch_embed.proj.weight': torch.ones(32, 3, 16, 16)}, r'but the model expects \(32, 3, 8, 8\)'),
    ],
)
def test_anything_but_a_full_match_is_refused_and_changes_nothing(
    build_vit: Build, encoder_state: State, tmp_path: Path, change: dict[str, Tensor | None], sentence: str
) -> None:
    state = {k: v for k, v in {**encoder_state, **change}.items() if v is not None}
    vit = build_vit()
    before = state_sha256(vit.state_dict())
    with pytest.raises(ValueError, match=sentence) as caught:
        load_weights(vit, save(state, tmp_path / 'wrong.safetensors'))
    assert 'wrong.safetensors' in str(caught.value) and '\n' not in str(caught.value)
    assert state_sha256(vit.state_dict()) == before


def test_weights_of_another_depth_are_refused_by_width_and_blocks(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    path = save(encoder_state, tmp_path / 'mae.safetensors')
    with pytest.raises(ValueError, match=r'width 32 and 4 blocks, it is missing blocks\.3\.'):
        load_weights(build_vit(depth=4), path)


@torch.no_grad()
def test_timms_files_load_by_timms_name(tmp_path: Path) -> None:
    theirs = timm.create_model('vit_tiny_patch16_224', num_classes=4).eval()
    torch.save(theirs.state_dict(), tmp_path / 'timm.pth')
    state = timm_state('vit_tiny_patch16_224.augreg_in21k', tmp_path / 'timm.pth')
    ours = create_vit('vit_tiny_patch16_224').eval()
    ours.load_state_dict(state)
    image = torch.randn(1, 3, 224, 224)
    assert_close(ours(image).cls, theirs.forward_features(image)[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize('name', ['vit_tiny_patch16_2240', 'vit_tiny_patch16_224.no_such_tag'])
def test_a_name_that_timm_does_not_know_is_refused_in_one_sentence(name: str) -> None:
    sentence = f'cannot load weights timm/{name} .*similar names are .*vit_'
    with pytest.raises(ValueError, match=sentence) as caught:
        read_weights(f'timm/{name}')
    assert '\n' not in str(caught.value)


def test_the_hash_is_of_the_values_and_not_of_the_file() -> None:
    state = {'a': torch.randn(3, 4).half(), 'b': torch.randn(5)}
    reordered = {'b': state['b'].clone(), 'a': state['a'].float()}
    assert state_sha256(state) == state_sha256(reordered)
    for change in ({'a': state['a'] + 1}, {'a': state['a'].reshape(4, 3)}, {'c': state['b']}):
        assert state_sha256(state) != state_sha256({**state, **change})


def test_an_enum_and_its_name_say_file_and_bands(
    build_vit: Build, encoder_state: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(encoder_state, tmp_path / 'with space.safetensors')

    class Our_Weights(WeightsEnum):
        MAE = Weights(path.as_uri(), lambda x: x, {'bands': ('red', 'green', 'blue')})

    monkeypatch.setattr(shipped, 'Our_Weights', Our_Weights, raising=False)
    for weights in (Our_Weights.MAE, 'Our_Weights.MAE'):
        vit = build_vit()
        load_weights(vit, weights)
        assert torch.equal(vit.cls_token, encoder_state['cls_token'])
        with pytest.raises(ValueError, match='but the model expects red, green, nir'):
            load_weights(build_vit(bands=('red', 'green', 'nir')), weights)


def test_an_entry_states_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, bands, groups = 'vit_tiny_patch8_32', ('red', 'green', 'nir'), [['red', 'green'], ['nir']]
    options = {'channel_groups': groups}
    vit = create_vit(name, bands=bands, tokenizer='group-channel', tokenizer_options=options)
    path = save(vit.state_dict(), tmp_path / 'groups.safetensors')

    class Our_Weights(WeightsEnum):
        GROUPS = Weights(
            path.as_uri(),
            lambda x: x,
            {'model': name, 'bands': bands, 'tokenizer': 'group-channel', 'tokenizer_options': options},
        )

    monkeypatch.setattr(shipped, 'Our_Weights', Our_Weights, raising=False)
    found = load_backbone(None, 'Our_Weights.GROUPS')
    assert found.patch_embed.kind == 'group-channel' and found.patch_embed.num_slots == 2
    assert torch.equal(found.patch_embed.channel_embed, vit.patch_embed.channel_embed)


@pytest.mark.parametrize('name', ['Weights.pth', 'Path.safetensors', 'ViTTiny8_Weights.pth'])
def test_a_file_name_like_that_of_a_class_is_a_file_name(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f'weights file not found: {name}'):
        read_weights(name)


def test_a_backbone_is_built_and_loaded_in_one_call(base_file: Path, base_state: State) -> None:
    vit = load_backbone('vit_tiny_patch8_32', base_file, img_size=64)
    assert not vit.training and vit.patch_embed.img_size == 64
    assert torch.equal(vit.norm.weight, base_state['norm.weight'])


def test_a_backbone_is_loaded_as_its_file_states(base_file: Path, tmp_path: Path) -> None:
    bands = ('B02', 'B03', 'B04')
    vit = create_vit('vit_tiny_patch8_32', img_size=48, bands=bands)
    path = tmp_path / 'stated.safetensors'
    write_state(path, vit.state_dict(), model_metadata(vit, vit.name))
    for name in (None, 'vit_tiny_patch8_32'):
        found = load_backbone(name, path)
        assert (found.patch_embed.img_size, found.patch_embed.bands) == (48, bands)
    assert load_backbone(None, path, img_size=32).patch_embed.img_size == 32
    with pytest.raises(ValueError, match='does not specify its backbone'):
        load_backbone(None, base_file)
    with pytest.raises(ValueError, match='but the model expects red, green, blue'):
        load_backbone(None, path, bands=['red', 'green', 'blue'])


def test_each_file_is_read_once(base_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vit = load_backbone('vit_tiny_patch8_32', base_file)
    base_file = save(vit.state_dict(), tmp_path / 'base.safetensors')
    config = ExPLoRAConfig.parse('[L]-r2')
    adapter_file = tmp_path / 'adapter.safetensors'
    save_adapter(adapter_file, explora(vit, config), vit.name, config)
    opened: list[Path] = []

    def count(path: Path, framework: str) -> Any:
        opened.append(Path(path))
        return safe_open(path, framework)

    monkeypatch.setattr(files, 'safe_open', count)
    load_backbone(None, base_file, adapter_file)
    assert sorted(opened) == sorted([base_file, adapter_file])
    stored = read_weights(base_file)
    opened.clear()
    load_backbone('vit_tiny_patch8_32', stored)
    load_weights(create_vit('vit_tiny_patch8_32'), stored)
    assert not opened


def test_a_look_at_weights_reads_no_numbers(base_file: Path, base_state: State, tmp_path: Path) -> None:
    torch.save({'model': base_state}, tmp_path / 'base.pth')
    for path in (base_file, tmp_path / 'base.pth'):
        stored = read_weights(path, values=False)
        assert all(tensor.is_meta for tensor in stored.state.values())
        full = read_weights(path).state
        assert {k: (v.shape, v.dtype) for k, v in stored.state.items()} == {
            k: (v.shape, v.dtype) for k, v in full.items()
        }
    entry = 'ViTSmall14_Weights.LVD142M_DINOV2_DEPTH6'  # int8 rows
    stored, full = (read_weights(entry, values=v) for v in (False, True))
    assert {k: v.shape for k, v in stored.state.items()} == {k: v.shape for k, v in full.state.items()}


def test_a_checkpoint_of_torchgeo_is_read_with_its_settings_beside(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    content = {
        'state_dict': {f'model.{k}': v for k, v in encoder_state.items()},
        'hyper_parameters': {'model': 'vit_tiny_patch16_224', 'lr': 1e-3},
        'epoch': 3,
    }
    torch.save(content, tmp_path / 'last.ckpt')
    vit = build_vit()
    loaded = load_weights(vit, tmp_path / 'last.ckpt')
    assert 'timm inside model layout, 42 of 42 tensors matched' in loaded.report
    assert torch.equal(vit.norm.bias, encoder_state['norm.bias'])


def test_many_tensors_that_are_left_out_are_counted(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    state = {f'student.{k}': v for k, v in encoder_state.items()}
    state |= {f'teacher.{k}': v + 1 for k, v in encoder_state.items()}
    vit = build_vit()
    report = load_weights(vit, save(state, tmp_path / 'pair.safetensors')).report
    assert torch.equal(vit.cls_token, encoder_state['cls_token'])
    assert 'left out: ' in report and len(report) < 300


def test_a_run_that_keeps_only_what_trained_is_no_source_of_weights(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    state = {f'model.backbone.{k}': v for k, v in encoder_state.items()}
    state['model.backbone.blocks.0.attn.qkv.lora_a.q'] = torch.ones(4, 32)
    torch.save({'state_dict': state}, tmp_path / 'run.ckpt')
    with pytest.raises(ValueError, match=r'run\.ckpt: the file contains unmerged LoRA updates'):
        load_weights(build_vit(), tmp_path / 'run.ckpt')


def test_weights_tuned_on_averaged_patches_need_a_model_without_final_norm(
    build_vit: Build, encoder_state: State, tmp_path: Path
) -> None:
    state = {
        k.replace('norm.', 'fc_norm.') if k.startswith('norm.') else k: v for k, v in encoder_state.items()
    }
    path = save(state, tmp_path / 'tuned.safetensors')
    with pytest.raises(ValueError, match='build the backbone with final_norm=False'):
        load_weights(build_vit(), path)
    vit = build_vit(final_norm=False)
    assert 'left out: fc_norm.bias, fc_norm.weight' in load_weights(vit, path).report
