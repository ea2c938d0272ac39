"""The command line: what it prints, and errors of one sentence with exit code 2."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import load_backbone, load_weights, read_state, save_adapter, write_state
from explora_geo.cli import main
from explora_geo.models import create_vit

MODEL = 'vit_tiny_patch8_32'
CONFIG = ExPLoRAConfig.parse('[L]-r4')
Refuse = Callable[..., str]


@pytest.mark.parametrize(
    ('args', 'number'),
    [
        (['D-ExPLoRA-[L]-r32'], '15,710,208'),
        (['[1,L-1,L]-r64'], '43,388,928'),
        (['D-[L]-r64', '--backbone', 'vit_base_patch14_dinov2'], '9,288,192'),
        (['full', '--backbone', 'vit_large_patch16_224'], '303,301,632'),
        (['[L]-r64', '--no-norms'], '18,628,608'),
        (['[L]-r64', '--targets', 'q,k,v,proj,fc1,fc2'], '39,827,456'),
        (['full', '--tokenizer', 'temporal', '--backbone', 'vit_large_patch16_224'], '303,099,904'),
    ],
)
def test_params_counts_as_the_paper(run: Callable[..., str], args: list[str], number: str) -> None:
    printed = run('params', *args)
    assert f'{number} of ' in printed
    assert args[0] in printed.replace('\n', ' ')


def test_params_counts_groups_of_bands_with_their_decoder_as_the_paper(run: Callable[..., str]) -> None:
    args = '--backbone vit_large_patch8_96 --tokenizer group-channel --objective mae'.split()
    printed = run('params', 'M-ExPLoRA-[1,L]-r32', *args)
    assert '29,697,664 of ' in printed and '29.698M' in printed
    rows = {m[1].strip(): int(m[2].replace(',', '')) for m in re.finditer(r'│ (.+?) +│ +([\d,]+) │', printed)}
    encoder = ('unfrozen block 1', 'unfrozen block 24', 'LoRA', 'norms', 'cls_token')
    assert sum(rows[name] for name in encoder) == 28_169_216
    assert rows['patch_embed'] == 10 * 64 * 1024 + 3 * 1024
    assert rows['decoder pred'] == 10 * 64 * 512 + 10 * 64
    assert rows['decoder LoRA'] == 8 * 4 * 512 * 32
    assert rows['decoder norms'] == 8 * 4 * 512 + 2 * 512


def test_the_module_is_the_command() -> None:
    command = [sys.executable, '-m', 'explora_geo', 'params', 'D-ExPLoRA-[L]-r32']
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert '15,710,208' in printed


def test_help_names_every_command(run: Callable[..., str]) -> None:
    printed = run('--help')
    assert all(name in printed for name in ('fit', 'validate', 'params', 'adapter', 'adapt'))


@pytest.mark.parametrize(
    ('args', 'sentence'),
    [
        (['D-ExPLoRA-[0]'], "cannot parse notation 'D-ExPLoRA-[0]'"),
        (['[25]'], 'block 25 does not exist: the model has blocks 1 to L = 24'),
        (['garbage'], "cannot parse notation 'garbage'"),
        (['[L]-r8', '--backbone', 'vit_giant'], "unknown backbone 'vit_giant'"),
        (['[L]-r8', '--targets', 'q,w'], 'targets must be among'),
        (['[L]-r8', '--alpha', '-1'], 'alpha must be positive'),
        (['[L]-r8', '--tokenizer', 'groups'], "unknown tokenizer 'groups'"),
        (['[L]-r8', '--objective', 'jepa'], "objective must be none or mae, got 'jepa'"),
    ],
)
def test_params_refuses_in_one_sentence(refuse: Refuse, args: list[str], sentence: str) -> None:
    assert sentence in refuse('params', *args)


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match='cannot parse notation'):
        main(['--debug', 'params', '[0]'])


@pytest.fixture
def adapter(base_file: Path, tmp_path: Path) -> Path:
    vit = create_vit(MODEL)
    load_weights(vit, base_file)
    explora(vit, CONFIG)
    with torch.no_grad():
        for parameter in vit.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    save_adapter(tmp_path / 'adapter.safetensors', vit, MODEL, CONFIG)
    return tmp_path / 'adapter.safetensors'


def test_adapter_info_shows_what_the_file_says(run: Callable[..., str], adapter: Path) -> None:
    printed = run('adapter', 'info', adapter)
    for text in (MODEL, '[L]-r4', 'red, green, blue', 'alpha=None', 'base.pth'):
        assert text in ' '.join(printed.split())
    stated = json.loads(read_state(adapter)[1]['adapter'])['base_sha256']
    assert stated[:40] in printed


@torch.no_grad()
def test_a_merged_file_loads_strictly_into_timm_with_equal_features(
    run: Callable[..., str], adapter: Path, base_file: Path, images: Tensor
) -> None:
    out = adapter.parent / 'merged.safetensors'
    run('adapter', 'merge', adapter, '--base', base_file, '--out', out)
    model = timm.create_model(
        'vit_tiny_patch16_224', num_classes=0, img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=2
    ).eval()
    model.load_state_dict(load_file(out), strict=True)
    expected = load_backbone(MODEL, base_file, adapter)(images)
    assert_close(model.forward_features(images)[:, 0], expected.cls, atol=1e-5, rtol=0)


def test_merge_refuses_another_base_and_writes_nothing(
    refuse: Refuse, adapter: Path, base_state: dict[str, Tensor]
) -> None:
    other, out = adapter.parent / 'other.pth', adapter.parent / 'merged.safetensors'
    torch.save({**base_state, 'pos_embed': base_state['pos_embed'] + 1}, other)
    sentence = refuse('adapter', 'merge', adapter, '--base', other, '--out', out)
    assert 'was trained on different base weights' in sentence
    assert not out.exists()


def test_a_truncated_adapter_is_refused_wherever_it_was_cut(refuse: Refuse, adapter: Path) -> None:
    content = adapter.read_bytes()
    for cut in (0, 5, 8, 200, len(content) // 2, len(content) - 1):
        adapter.write_bytes(content[:cut])
        assert 'damaged' in refuse('adapter', 'info', adapter)


def test_an_adapter_that_lacks_a_tensor_is_refused(refuse: Refuse, adapter: Path, base_file: Path) -> None:
    state, metadata = read_state(adapter)
    del state['blocks.1.attn.qkv.lora_a.v']
    write_state(adapter, state, metadata)
    sentence = refuse('adapter', 'merge', adapter, '--base', base_file, '--out', adapter.parent / 'm')
    assert 'is missing blocks.1.attn.qkv.lora_a.v' in sentence


def test_other_files_are_no_adapters(refuse: Refuse, base_file: Path, tmp_path: Path) -> None:
    assert 'is not an adapter file' in refuse('adapter', 'info', base_file)
    assert 'weights file not found' in refuse('adapter', 'info', tmp_path / 'missing.safetensors')
    (tmp_path / 'text.safetensors').write_text('not tensors')
    assert 'damaged or not a safetensors file' in refuse('adapter', 'info', tmp_path / 'text.safetensors')


def test_a_failing_merge_keeps_the_old_file_and_leaves_no_other(
    refuse: Refuse, adapter: Path, base_file: Path, fail_to_write: Callable[[], None]
) -> None:
    out = adapter.parent / 'merged.safetensors'
    out.write_bytes(b'old')
    files = sorted(os.listdir(adapter.parent))
    fail_to_write()
    assert 'No space left' in refuse('adapter', 'merge', adapter, '--base', base_file, '--out', out)
    assert out.read_bytes() == b'old' and sorted(os.listdir(adapter.parent)) == files


def test_weights_inspect_shows_what_a_file_is(
    run: Callable[..., str], refuse: Refuse, base_file: Path, adapter: Path
) -> None:
    printed = ' '.join(run('weights', 'inspect', base_file).split())
    for text in ('explora_geo', 'vit_tiny_patch8_32', '3, names not stated', '8 px', '32 px, 4x4 patches'):
        assert text in printed
    assert 'unmerged LoRA updates' in refuse('weights', 'inspect', adapter)
    assert 'weights file not found' in refuse('weights', 'inspect', 'missing.pth')


def test_weights_list_names_licence_and_backbone_of_every_entry(run: Callable[..., str]) -> None:
    lines = run('weights', 'list').splitlines()
    line = next(line for line in lines if line.startswith('ViTLarge8_Weights.FMOW_SENTINEL_SATMAE'))
    assert 'vit_large_patch8_96, group-channel, with decoder; CC-BY-NC-4.0' in line


def test_weights_are_searched(run: Callable[..., str], refuse: Refuse) -> None:
    lines = run('weights', 'list', '--search', 'Sentinel2 DINO small16').splitlines()
    assert [line.split(':')[0] for line in lines] == ['torchgeo/ViTSmall16_Weights.SENTINEL2_ALL_DINO']
    assert "no weights match 'mars'" in refuse('weights', 'list', '--search', 'mars')
    assert 'nearest are ViTTiny8_Weights.TINY_IMAGENET_MAE' in refuse(
        'weights', 'inspect', 'ViTTiny8_Weights.MAE'
    )


def test_pack_says_what_it_wrote_and_refuses_another_archive(
    run: Callable[..., str], refuse: Refuse, tiles: Path, tmp_path: Path
) -> None:
    out = tmp_path / 'pack'
    for _ in range(2):  # the second time only checks
        printed = run('pack', tiles, out, '--bands', 'blue,red', '--size', 32)
        assert '24 tiles of (2, 32, 32), uint8' in printed and 'every tile verified' in printed
    assert 'contains a pack with other' in refuse('pack', tiles, out)
    assert 'does not exist' in refuse('pack', tmp_path / 'missing', out)
