"""DINOv3's and DINOv2's backbones give what timm's and Hugging Face's own modules give, from their files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from explora_geo.adaptation import ExPLoRAConfig, LoRALinear, explora, merge_lora
from explora_geo.checkpoints import load_backbone, load_weights
from explora_geo.checkpoints.convert import convert, dino_name
from explora_geo.checkpoints.export import export, export_transformers
from explora_geo.checkpoints.sources import StoredWeights
from explora_geo.models import RotaryConfig, ViT, create_vit

State = dict[str, Tensor]
# Two grids, one of them rectangular
IMAGES = ((64, 64), (48, 96))


def scatter(model: Any) -> Any:
    """Make every number of a model random, and of the size that trained ones have."""
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            scale = 0.4 if 'gamma' in name or 'lambda' in name else 0.5 / max(tensor[0].numel(), 16) ** 0.5
            tensor += scale * torch.randn_like(tensor)
    return model.eval()


def timm_vit(name: str, **kwargs: Any) -> Any:
    return scatter(timm.create_model(name, num_classes=0, depth=2, **kwargs))


def tokens(vit: ViT, image: Tensor) -> Tensor:
    """Class, register and patch tokens in timm's order."""
    found = vit(image)
    registers = found.cls[:, None][:, :0] if found.registers is None else found.registers
    return torch.cat([found.cls[:, None], registers, found.patches[:, 0]], dim=1)


def from_state(name: str, state: State, path: Path, **kwargs: Any) -> ViT:
    save_file({k: v.contiguous() for k, v in state.items()}, path / 'weights.safetensors')
    return load_backbone(name, path / 'weights.safetensors', **kwargs)


def meta_names(model: nn.Module) -> State:
    """A model of timm's under the names of Meta's files, whose keys have a bias of NaN that is masked."""
    named: State = {'mask_token': torch.randn(1, model.embed_dim)}
    head = model.embed_dim // model.blocks[0].attn.num_heads
    named['rope_embed.periods'] = (100 ** (torch.arange(head // 4) / (head // 4))).bfloat16()
    state = model.state_dict()
    for key, value in state.items():
        if key.endswith('q_bias'):
            parts = [value, torch.full_like(value, torch.nan), state[key.replace('q_bias', 'v_bias')]]
            named[key.replace('q_bias', 'qkv.bias')] = torch.cat(parts)
            named[key.replace('q_bias', 'qkv.bias_mask')] = torch.cat([torch.ones_like(x) for x in parts])
        elif not key.endswith('v_bias'):
            key = key.replace('reg_token', 'storage_tokens')
            named[key.replace('gamma_1', 'ls1.gamma').replace('gamma_2', 'ls2.gamma')] = value
    return named


@pytest.mark.parametrize('bias', ['', '_qkvb'])
@pytest.mark.parametrize('size', ['small', 'base', pytest.param('large', marks=pytest.mark.slow)])
@torch.no_grad()
def test_dinov3_gives_timms_tokens(size: str, bias: str, tmp_path: Path) -> None:
    name = f'vit_{size}_patch16_dinov3{bias}'
    theirs = timm_vit(name)
    ours = from_state(f'{name}_depth2', theirs.state_dict(), tmp_path)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for shape in IMAGES:
        image = torch.randn(2, 3, *shape)
        expected = theirs.forward_features(image)
        assert_close(tokens(ours, image), expected, atol=1e-5, rtol=1e-5)
        with torch.autocast('cpu', torch.bfloat16):
            found = tokens(ours, image)
        assert (found - expected).norm() < 0.02 * expected.norm()


@torch.no_grad()
def test_metas_file_of_dinov3_gives_timms_tokens(tmp_path: Path) -> None:
    theirs = timm_vit('vit_small_patch16_dinov3_qkvb')
    state = meta_names(theirs)
    assert convert(state).layout == 'dinov3'
    assert dino_name(state) is None  # two blocks have no name
    ours = from_state('vit_small_patch16_dinov3_qkvb_depth2', state, tmp_path, mask_token=True)
    image = torch.randn(2, 3, 48, 64)
    assert_close(tokens(ours, image), theirs.forward_features(image), atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.mask_token, state['mask_token'])


def test_a_zero_bias_is_left_out_and_filled_in_and_another_refused(tmp_path: Path) -> None:
    theirs = timm_vit('vit_small_patch16_dinov3_qkvb')
    with pytest.raises(ValueError, match=r'contains unknown blocks\.0\.attn\.q_bias'):
        from_state('vit_small_patch16_dinov3_depth2', theirs.state_dict(), tmp_path)
    with torch.no_grad():
        for block in theirs.blocks:
            block.attn.q_bias.zero_()
            block.attn.v_bias.zero_()
    image = torch.randn(2, 3, 32, 32)
    expected = theirs.forward_features(image)
    for state in (meta_names(theirs), {k: v for k, v in theirs.state_dict().items() if 'v_bias' not in k}):
        for name in ('vit_small_patch16_dinov3_depth2', 'vit_small_patch16_dinov3_qkvb_depth2'):
            ours = from_state(name, state, tmp_path)
            assert_close(tokens(ours, image), expected, atol=1e-5, rtol=1e-5)


def test_other_periods_and_other_families_are_refused_by_a_sentence(tmp_path: Path) -> None:
    state = meta_names(timm_vit('vit_small_patch16_dinov3_qkvb'))
    plain = create_vit('vit_small_patch14_dinov2_depth2', img_size=28).state_dict()
    cases: list[tuple[str, State, str]] = [
        ('vit_small_patch16_dinov3_qkvb_depth2', {**state, 'rope_embed.periods': torch.ones(16)}, 'periods'),
        (
            'vit_small_patch16_224_depth2',
            state,
            'has rotary positions .*, but the model has a position table',
        ),
        ('vit_small_patch16_dinov3_depth2', plain, 'has a position table .*, but the model has rotary'),
        (
            'vit_small_patch14_reg4_dinov2_depth2',
            plain,
            'and 0 .*, but the model has .* and 4 register tokens',
        ),
    ]
    for name, tensors, message in cases:
        with pytest.raises(ValueError, match=message):
            from_state(name, tensors, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize('size', ['small', 'giant'])
@torch.no_grad()
def test_dinov2_with_registers_gives_timms_tokens(size: str, tmp_path: Path) -> None:
    name = f'vit_{size}_patch14_reg4_dinov2'
    theirs = timm_vit(name, img_size=56)
    image = torch.randn(2, 3, 56, 56)
    expected = theirs.forward_features(image)
    state = dict(theirs.state_dict())
    ours = from_state(f'{name}_depth2', state, tmp_path, img_size=56)
    assert_close(tokens(ours, image), expected, atol=1e-5, rtol=1e-5)
    # Meta's file: positions with an entry of the class token, which timm folds into the token
    entry = torch.randn(1, 1, theirs.embed_dim)
    metas = {k: v for k, v in state.items() if k != 'reg_token'}
    metas |= {'register_tokens': state['reg_token'], 'cls_token': state['cls_token'] - entry}
    metas['pos_embed'] = torch.cat([entry, state['pos_embed']], dim=1)
    ours = from_state(f'{name}_depth2', metas, tmp_path, img_size=56)
    assert_close(tokens(ours, image), expected, atol=1e-5, rtol=1e-5)
    export(ours, ours.name, tmp_path / 'timm.safetensors')  # and back
    theirs.load_state_dict(load_file(tmp_path / 'timm.safetensors'))
    assert_close(theirs.forward_features(image), expected, atol=1e-5, rtol=1e-5)


HUGGING_FACE: dict[str, tuple[str, Callable[[], Any]]] = {
    'dinov3': (
        'vit_small_patch16_dinov3_qkvb_depth2',
        lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(num_hidden_layers=2, num_register_tokens=4, image_size=32)
        ),
    ),
    'dinov2': (
        'vit_small_patch14_dinov2_depth2',
        lambda: transformers.Dinov2Model(
            transformers.Dinov2Config(
                num_hidden_layers=2, hidden_size=384, num_attention_heads=6, image_size=28, patch_size=14
            )
        ),
    ),
    'dinov2 giant': (
        'vit_giant_patch14_dinov2_depth1',
        lambda: transformers.Dinov2Model(
            transformers.Dinov2Config(
                num_hidden_layers=1,
                hidden_size=1536,
                num_attention_heads=24,
                image_size=28,
                patch_size=14,
                use_swiglu_ffn=True,
            )
        ),
    ),
    'dinov2 with registers': (
        'vit_small_patch14_reg4_dinov2_depth2',
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(
                num_hidden_layers=2, hidden_size=384, num_attention_heads=6, image_size=28, patch_size=14
            )
        ),
    ),
}


def published(state: State) -> State:
    """The names of published files, which are those of transformers 4."""
    old = {'q_proj': 'attention.query', 'k_proj': 'attention.key', 'v_proj': 'attention.value'}
    named: State = {}
    for key, value in state.items():
        if key.startswith('encoder.'):
            for new, name in old.items():
                key = key.replace(new, name)
            key = key.replace('o_proj', 'output.dense').replace('down_proj', 'weights_out')
            if 'up_proj' in key:
                continue
            if 'gate_proj' in key:
                value = torch.cat([value, state[key.replace('gate_proj', 'up_proj')]])
                key = key.replace('gate_proj', 'weights_in')
        named[key.removeprefix('model.')] = value
    return named


@pytest.mark.parametrize(
    'family', [pytest.param(f, marks=pytest.mark.slow) if 'giant' in f else f for f in HUGGING_FACE]
)
@torch.no_grad()
def test_hugging_faces_models_load_in_both_spellings(family: str, tmp_path: Path) -> None:
    name, build = HUGGING_FACE[family]
    theirs = scatter(build())
    image = torch.randn(2, 3, *((32, 48) if family == 'dinov3' else (28, 28)))
    expected = theirs(image).last_hidden_state
    for state in (theirs.state_dict(), published(theirs.state_dict())):
        size = {} if family == 'dinov3' else {'img_size': 28}
        ours = from_state(name, state, tmp_path, mask_token=True, **size)
        if family == 'dinov3':  # DINOv3 rescales in training alone; transformers' norms have its epsilon
            assert ours.norm.eps == 1e-5
        assert_close(tokens(ours, image), expected, atol=2e-5, rtol=1e-5)
    kind = export_transformers(ours, tmp_path / 'exported')
    assert kind == type(theirs).__name__
    again, loading = type(theirs).from_pretrained(tmp_path / 'exported', output_loading_info=True)
    assert not any(loading.values())
    assert_close(again.eval()(image).last_hidden_state, expected, atol=2e-5, rtol=1e-5)


def test_what_transformers_has_no_model_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='format transformers supports only DINOv2 and DINOv3 backbones'):
        export_transformers(create_vit('vit_tiny_patch16_224'), tmp_path)


@pytest.mark.parametrize('kind', ['patch16_dinov3_qkvb', 'patch14_reg4_dinov2'])
def test_lora_acts_and_merges_in_each_family(kind: str) -> None:
    vit = scatter(create_vit(f'vit_small_{kind}_depth2', img_size=2 * int(kind[5:7])))
    side = vit.patch_embed.img_size
    image = torch.randn(2, 3, side, side)
    with torch.no_grad():
        before = tokens(vit, image)
        explora(vit, ExPLoRAConfig.parse('[L]-r4'))
        assert_close(tokens(vit, image), before)
        layers = [m for m in vit.modules() if isinstance(m, LoRALinear)]
        assert len(layers) == 1
        for b in layers[0].lora_b.values():
            b.normal_(std=0.3)
        adapted = tokens(vit, image)
        assert (adapted - before).norm() > 0.01 * before.norm()
        assert_close(tokens(merge_lora(vit), image), adapted, atol=1e-4, rtol=1e-4)
    assert not vit.reg_token.requires_grad and vit.cls_token.requires_grad


@pytest.mark.parametrize(
    'name', ['small_patch16_dinov3', 'base_patch16_dinov3_qkvb', 'large_patch14_reg4_dinov2']
)
def test_files_of_whole_networks_need_no_name(name: str) -> None:
    with torch.device('meta'):
        state = timm.create_model(f'vit_{name}', num_classes=0).state_dict()
    assert dino_name(state) == f'vit_{name}'
    metas = {
        k.replace('gamma_1', 'ls1.gamma').replace('reg_token', 'storage_tokens'): v for k, v in state.items()
    }
    assert dino_name(metas) == f'vit_{name}'
    assert dino_name({k: v for k, v in state.items() if 'cls' not in k}) is None


def test_coordinates_vary_in_training_alone() -> None:
    options = RotaryConfig(shift=0.2, jitter=1.5, rescale=2)
    vit = create_vit('vit_small_patch16_dinov3_depth2', img_size=32, rotary=options)
    assert vit.rope is not None
    same = [vit.eval().rope((2, 2), torch.device('cpu')) for _ in range(2)]
    other = [vit.train().rope((2, 2), torch.device('cpu')) for _ in range(2)]
    assert torch.equal(*same) and not torch.allclose(*other)
    with pytest.raises(ValueError, match='rotary is only for DINOv3'):
        create_vit('vit_small_patch16_224', rotary=options)
    with pytest.raises(ValueError, match='jitter and rescale at least 1'):
        RotaryConfig(jitter=0.5)


@torch.no_grad()
def test_kept_tokens_keep_their_place() -> None:
    vit = scatter(create_vit('vit_small_patch16_dinov3_depth2', img_size=64))
    image = torch.randn(2, 3, 64, 64)
    keep = torch.stack([torch.randperm(16) for _ in range(2)])
    found, expected = vit(image, keep=keep), vit(image)
    order = keep[:, :, None].expand(-1, -1, 384)
    assert_close(found.patches, expected.patches[:, 0].gather(1, order), atol=1e-5, rtol=1e-5)
    assert_close(found.cls, expected.cls, atol=1e-5, rtol=1e-5)


def test_weights_fill_a_part_that_is_there_already() -> None:
    vit = create_vit('vit_small_patch16_dinov3_depth2', img_size=32)
    stored = StoredWeights({k: v.clone() for k, v in vit.state_dict().items()}, 'memory')
    assert 'tensors matched' in load_weights(vit, stored).report
    assert vit.stored_position is None
