"""Foreign layouts become ours."""

import re
from collections.abc import Callable

import pytest
import torch
import transformers
from einops import rearrange
from torch import Tensor
from torch.testing import assert_close

from explora_geo.checkpoints.convert import convert, recognize
from explora_geo.models import PatchTokenizer, TrunkConfig, ViT, create_vit
from explora_geo.objectives import MAE

try:
    from torchgeo.tasks import Classification as ClassificationTask  # TorchGeo 0.10
except ImportError:
    from torchgeo.trainers import ClassificationTask

State = dict[str, Tensor]


def test_layouts_are_recognised_by_their_own_keys(encoder_state: State, mae_state: State) -> None:
    assert recognize(mae_state) == 'mae'
    assert recognize(encoder_state) == 'timm'
    assert recognize({**encoder_state, 'mask_token': torch.zeros(1, 32)}) == 'dinov2'


def test_a_full_mae_file_splits_into_backbone_and_decoder(encoder_state: State, mae_state: State) -> None:
    backbone, parts, layout = convert(mae_state)
    assert layout == 'mae'
    assert list(backbone) == list(encoder_state)
    assert all(backbone[k] is mae_state[k] for k in backbone)
    assert {k.split('.')[1] for k in parts} == {
        *('mask_token', 'pos_embed', 'embed', 'blocks', 'norm', 'pred')
    }
    assert torch.equal(parts['decoder.mask_token'], mae_state['mask_token'])
    assert torch.equal(parts['decoder.blocks.0.mlp.fc1.bias'], mae_state['decoder_blocks.0.mlp.fc1.bias'])


def test_prediction_rows_are_reordered_from_pixel_colour_to_colour_pixel(mae_state: State) -> None:
    parts = convert(mae_state)[1]
    for name in ('weight', 'bias'):
        theirs, ours = mae_state[f'decoder_pred.{name}'], parts[f'decoder.pred.{name}']
        for p, q, c in [(0, 0, 0), (0, 0, 2), (3, 5, 1), (7, 7, 2)]:
            assert torch.equal(ours[c * 64 + p * 8 + q], theirs[(p * 8 + q) * 3 + c])


def test_converting_twice_changes_nothing(mae_state: State) -> None:
    first = convert(mae_state)
    again = convert({**first[0], **first[1]})
    assert again[2] == 'explora_geo'
    for before, after in zip(first[:2], again[:2], strict=True):
        assert list(before) == list(after)
        assert all(torch.equal(before[k], after[k]) for k in before)


def test_the_input_is_not_changed(mae_state: State) -> None:
    before = {k: v.clone() for k, v in mae_state.items()}
    convert(mae_state)
    assert list(before) == list(mae_state)
    assert all(torch.equal(before[k], mae_state[k]) for k in before)


def with_prefix(state: State, prefix: str) -> State:
    return {f'{prefix}{k}': v for k, v in state.items()}


def split_attention(state: State) -> State:
    """The official ExPLoRA code's keys: q_proj, k_proj, v_proj beside the fused qkv."""
    split = dict(state)
    for key, value in state.items():
        if '.attn.qkv.' in key:
            for name, part in zip('qkv', value.chunk(3), strict=True):
                split[key.replace('.qkv.', f'.{name}_proj.')] = part
    return split


def in_chunks(state: State) -> State:
    """DINOv2's training code puts blocks into chunks that count from the first block."""
    return {re.sub(r'^blocks\.(\d+)\.', r'blocks.0.\1.', k): v for k, v in state.items()}


def hugging_face(state: State, published: bool) -> State:
    """A full MAE state dict under the names of transformers' ViTMAEForPreTraining."""
    attention = {'q': 'query', 'k': 'key', 'v': 'value'}
    named: State = {}
    for key, value in split_attention(state).items():
        if '.attn.qkv.' in key:
            continue
        key = key.replace('patch_embed.proj.', 'embeddings.patch_embeddings.projection.')
        key = re.sub(r'^(cls_token)$', r'embeddings.\1', key)
        key = re.sub(r'^pos_embed$', 'embeddings.position_embeddings', key)
        key = re.sub(r'^norm\.', 'layernorm.', key)
        key = key.replace('decoder_blocks.', 'decoder_layers.')
        key = key.replace('.norm1.', '.layernorm_before.').replace('.norm2.', '.layernorm_after.')
        if published:
            key = re.sub(r'^blocks\.', 'encoder.layer.', key)
            key = re.sub(r'\.attn\.([qkv])_proj\.', lambda m: f'.attention.attention.{attention[m[1]]}.', key)
            key = key.replace('.attn.proj.', '.attention.output.dense.')
            key = key.replace('.mlp.fc1.', '.intermediate.dense.').replace('.mlp.fc2.', '.output.dense.')
        else:
            key = re.sub(r'^blocks\.', 'layers.', key).replace('.attn.proj.', '.attention.o_proj.')
            key = key.replace('.attn.', '.attention.')
        decoder = key.startswith('decoder_') or key == 'mask_token'
        named[f'decoder.{key}' if decoder else f'vit.{key}'] = value
    return named


def lightly(state: State) -> State:
    """A full MAE state dict as TorchGeo's MAE task keeps it, in lightly's modules."""
    named = {}
    for key, value in state.items():
        decoder = key.startswith('decoder_') or key == 'mask_token'
        named[f'decoder.{key}' if decoder else f'backbone.vit.{key}'] = value
    return {**named, 'backbone.mask_token': torch.zeros(1, 1, 32)}


Change = Callable[[State], State]
ENCODERS: dict[str, tuple[Change, str]] = {
    'as it is': (dict, 'timm'),
    'ExPLoRA, split attention': (split_attention, 'explora'),
    'ExPLoRA, split attention alone': (
        lambda s: {k: v for k, v in split_attention(s).items() if '.qkv.' not in k},
        'explora',
    ),
    'DINOv2 training, in chunks': (lambda s: with_prefix(in_chunks(s), 'backbone.'), 'timm inside backbone'),
    'ExPLoRA, from DINOv2 training': (
        lambda s: with_prefix(split_attention(in_chunks(s)), 'backbone.'),
        'explora inside backbone',
    ),
    'TorchGeo, classification': (
        lambda s: {**with_prefix(s, 'model.'), 'model.head.bias': torch.ones(2)},
        'timm inside model',
    ),
    'distributed': (lambda s: with_prefix(s, 'module.'), 'timm inside module'),
    'MoCo, with its averaged twin': (
        lambda s: {
            **with_prefix({k: v + 1 for k, v in s.items()}, 'backbone_momentum.'),
            **with_prefix(s, 'backbone.'),
            'projection_head.layers.0.weight': torch.ones(2, 2),
        },
        'timm inside backbone',
    ),
}


@pytest.mark.parametrize('name', ENCODERS)
def test_an_encoder_is_found_under_every_spelling(encoder_state: State, name: str) -> None:
    change, layout = ENCODERS[name]
    found = convert(change(encoder_state))
    assert found.layout == layout
    assert sorted(found.backbone) == sorted(encoder_state)
    assert all(torch.equal(found.backbone[k], v) for k, v in encoder_state.items())


AUTOENCODERS: dict[str, tuple[Change, str]] = {
    'MAE': (dict, 'mae'),
    'ExPLoRA from MAE': (split_attention, 'explora mae'),
    'Hugging Face, published': (lambda s: hugging_face(s, published=True), 'hugging face'),
    'Hugging Face, transformers 5': (lambda s: hugging_face(s, published=False), 'hugging face'),
    'TorchGeo': (lightly, 'mae inside backbone.vit'),
    'a Lightning module around MAE': (lambda s: with_prefix(s, 'net.mae.'), 'mae inside net.mae'),
}


@pytest.mark.parametrize('name', AUTOENCODERS)
def test_an_autoencoder_is_found_under_every_spelling(mae_state: State, name: str) -> None:
    change, layout = AUTOENCODERS[name]
    plain, found = convert(mae_state), convert(change(mae_state))
    assert found.layout == layout
    for ours, theirs in ((plain.backbone, found.backbone), (plain.parts, found.parts)):
        assert set(ours) <= set(theirs)
        assert all(torch.equal(theirs[k], v) for k, v in ours.items())
    assert set(found.backbone) - set(plain.backbone) <= {'mask_token'}  # lightly's backbone has its own


@torch.no_grad()
def test_hugging_faces_own_model_computes_what_ours_does(images: Tensor) -> None:
    config = transformers.ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        layer_norm_eps=1e-6,
    )
    theirs = transformers.ViTMAEForPreTraining(config).eval()
    for parameter in theirs.parameters():
        parameter += 0.1 * torch.randn_like(parameter)
    found = convert(theirs.state_dict())
    vit = ViT(PatchTokenizer(32, 32, 8), 32, 2, 2, TrunkConfig(mlp_ratio=2))
    vit.load_state_dict(found.backbone)
    mae = MAE(vit, norm_pix_loss=False, decoder_num_heads=2)
    mae.load_pretrained(found.parts)
    noise = torch.rand(8, 16)
    expected = theirs(images, noise=noise)
    out = mae.eval().reconstruct(images, noise)
    assert torch.equal(out.mask[:, 0], expected.mask)
    pred = rearrange(out.pred[:, 0], 'b l (c p q) -> b l (p q c)', c=3, p=8)
    assert_close(pred, expected.logits, atol=1e-5, rtol=0)


@torch.no_grad()
def test_torchgeos_own_task_computes_what_ours_does(images: Tensor) -> None:
    task = ClassificationTask(model='vit_tiny_patch16_224', num_classes=3).eval()
    for parameter in task.parameters():
        parameter += 0.02 * torch.randn_like(parameter)
    found = convert(task.state_dict())
    assert set(found.parts) == {'head.weight', 'head.bias'}
    vit = create_vit('vit_tiny_patch16_224').eval()
    vit.load_state_dict(found.backbone)
    image = torch.randn(1, 3, 224, 224)
    expected = task.model.forward_features(image)[:, 0]  # type: ignore[operator, union-attr]
    assert_close(vit(image).cls, expected, atol=1e-5, rtol=0)


def test_gated_mlps_get_timms_names(encoder_state: State) -> None:
    giant = {
        k.replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3'): v for k, v in encoder_state.items()
    }
    assert sorted(convert(giant).backbone) == sorted(encoder_state)


def test_satmaes_group_files_split_into_tokenizer_and_decoder(group_state: State) -> None:
    found = convert(group_state)
    assert found.layout == 'satmae group-channel'
    assert torch.equal(found.backbone['patch_embed.proj.1.weight'], group_state['patch_embed.1.proj.weight'])
    assert torch.equal(found.backbone['patch_embed.channel_embed'], group_state['channel_embed'])
    assert torch.equal(found.parts['decoder.pred.0.weight'], group_state['decoder_pred.0.weight'])
    codes = group_state['decoder_channel_embed']  # the class token's last
    assert torch.equal(found.parts['decoder.slot_embed'], codes[:, [2, 0, 1]])


def test_satmaes_class_code_is_folded_into_the_class_token(group_state: State) -> None:
    code = torch.randn(1, 1, 8)
    found = convert({**group_state, 'channel_cls_embed': code})
    expected = group_state['cls_token'].clone()
    expected[..., -8:] += code
    assert torch.equal(found.backbone['cls_token'], expected)
    assert not any('channel_cls_embed' in k for k in (*found.backbone, *found.parts))


def test_official_explora_files_of_groups_are_read(group_state: State) -> None:
    plain, found = convert(group_state), convert(split_attention(group_state))
    assert found.layout == 'explora satmae group-channel'
    for ours, theirs in zip(plain[:2], found[:2], strict=True):
        assert sorted(ours) == sorted(theirs) and all(torch.equal(theirs[k], v) for k, v in ours.items())


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        ({'blocks.0.attn.qkv.lora_a.q': torch.ones(1)}, 'unmerged LoRA updates'),
        ({'blocks.0.attn.qkv.lora_B.default.weight': torch.ones(1)}, 'unmerged LoRA updates'),
        ({'cls_token': None}, 'has no class token, so it is not a supported ViT'),
    ],
)
def test_what_is_no_backbone_is_refused(
    encoder_state: State, change: dict[str, Tensor | None], sentence: str
) -> None:
    state = {k: v for k, v in {**encoder_state, **change}.items() if v is not None}
    with pytest.raises(ValueError, match=sentence):
        convert(state)


def test_attention_that_is_stored_twice_must_agree(encoder_state: State) -> None:
    state = split_attention(encoder_state)
    state['blocks.1.attn.k_proj.weight'] = state['blocks.1.attn.k_proj.weight'] + 1
    with pytest.raises(
        ValueError, match=r'blocks\.1\.attn\.qkv does not match its q_proj, k_proj and v_proj'
    ):
        convert(state)
