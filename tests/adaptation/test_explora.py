"""What trains: the paper's configurations, counted exactly, and what stays as it was."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from explora_geo.adaptation import (
    ExPLoRAConfig,
    LoRALinear,
    explora,
    frozen_blocks,
    merge_lora,
    trainable_names,
    trainable_summary,
)
from explora_geo.models import MAEDecoder, ViT, create_vit

Build = Callable[..., ViT]
LARGE, BASE = 'vit_large_patch14_dinov2', 'vit_base_patch14_dinov2'
ALL = ('q', 'k', 'v', 'proj', 'fc1', 'fc2')


def count(config: ExPLoRAConfig, name: str = LARGE) -> int:
    with torch.device('meta'):
        vit = explora(create_vit(name), config)
    total = sum(p.numel() for p in vit.parameters() if p.requires_grad)
    assert total == sum(trainable_summary(vit).values())
    return total


def formula(unfrozen: int, rank: int, width: int = 1024, depth: int = 24, norms: bool = True) -> int:
    """Blocks with LayerScale, LoRA on Q and V and norms of the others, final norm, class token."""
    block = 12 * width**2 + 13 * width + 2 * width
    frozen = depth - unfrozen
    total = unfrozen * block + frozen * 4 * width * rank + width
    return total + (frozen * 4 * width + 2 * width if norms else 0)


@pytest.mark.parametrize(
    ('notation', 'name', 'expected'),
    [
        ('D-[L]-r32', LARGE, 15_710_208),
        ('D-[L]-r64', LARGE, 18_724_864),
        ('[L]', LARGE, 12_695_552),
        ('[1,L-1,L]-r64', LARGE, 43_388_928),
        ('D-ExPLoRA-[L]-r64', BASE, 9_288_192),
    ],
)
def test_published_counts_are_met_exactly(notation: str, name: str, expected: int) -> None:
    assert count(ExPLoRAConfig.parse(notation), name) == expected


def test_lora_fine_tuning_trains_786_432_parameters() -> None:
    config = ExPLoRAConfig.parse('[]-r8', train_norms=False, train_cls_token=False)
    assert count(config) == 24 * 4 * 1024 * 8 == 786_432


def test_full_pre_training_trains_303_301_632_parameters() -> None:
    expected = 303_301_632  # blocks, patch embedding, 197 positions, class token, final norm
    assert count(ExPLoRAConfig.parse('full'), 'vit_large_patch16_224') == expected


@pytest.mark.parametrize('rank', [8, 16, 32, 64, 128, 256])
def test_ablation_of_the_rank(rank: int) -> None:
    assert count(ExPLoRAConfig.parse(f'[L]-r{rank}')) == formula(1, rank)


@pytest.mark.parametrize(
    ('notation', 'unfrozen', 'rank'),
    [('[L-1,L]', 2, 0), ('[]-r256', 0, 256), ('[1]-r64', 1, 64), ('[1,2,L-1,L]', 4, 0)],
)
def test_ablation_of_blocks(notation: str, unfrozen: int, rank: int) -> None:
    assert count(ExPLoRAConfig.parse(notation)) == formula(unfrozen, rank)


def test_ablation_of_lora_on_all_attention_and_mlp_matrices() -> None:
    config = ExPLoRAConfig.parse('[L]-r64', targets=ALL)
    # A and B of q, k, v, proj are D x r each; fc1 and fc2 join widths D and 4D.
    lora = 23 * 64 * 1024 * (4 * 2 + 2 * 5)
    assert count(config) == formula(1, 0) + lora


def test_ablation_of_frozen_norms_leaves_the_unfrozen_block_whole() -> None:
    config = ExPLoRAConfig.parse('[L]-r64', train_norms=False)
    assert count(config) == formula(1, 64, norms=False)


def test_the_first_block_is_unfrozen_by_1() -> None:
    with torch.device('meta'):
        vit = explora(create_vit(BASE), ExPLoRAConfig.parse('[1]-r8'))
    assert 'unfrozen block 1' in trainable_summary(vit)
    assert not isinstance(vit.blocks[0].attn.qkv, LoRALinear)
    assert all(isinstance(block.attn.qkv, LoRALinear) for block in vit.blocks[1:])


def test_the_summary_names_the_parts_of_the_paper() -> None:
    with torch.device('meta'):
        vit = explora(create_vit(LARGE), ExPLoRAConfig.parse('[L]-r32', extra=('patch_embed',)))
    assert trainable_summary(vit) == {
        'unfrozen block 24': 12_598_272,
        'LoRA': 23 * 4 * 1024 * 32,
        'norms': 23 * 4096 + 2048,
        'cls_token': 1024,
        'patch_embed': 3 * 14 * 14 * 1024 + 1024,
    }


def test_the_names_that_train_are_exactly_these(build_vit: Build) -> None:
    vit = explora(build_vit(init_values=1e-5), ExPLoRAConfig.parse('[L]-r2'))
    lora = [f'attn.qkv.lora_{part}.{name}' for part in 'ab' for name in 'qv']
    norms = [f'norm{i}.{part}' for i in (1, 2) for part in ('weight', 'bias')]
    whole = [
        *(f'{m}.{p}' for m in ('attn.qkv', 'attn.proj') for p in ('weight', 'bias')),
        *(f'mlp.{m}.{p}' for m in ('fc1', 'fc2') for p in ('weight', 'bias')),
        *('ls1.gamma', 'ls2.gamma'),
    ]
    expected = {'cls_token', 'norm.weight', 'norm.bias'}
    expected |= {f'blocks.{i}.{name}' for i in (0, 1) for name in [*lora, *norms]}
    expected |= {f'blocks.2.{name}' for name in [*whole, *norms]}
    assert set(trainable_names(vit)) == expected


@pytest.mark.parametrize('notation', ['[L]-r4', '[1,L]-r4', '[]-r4', '[L]'])
def test_training_moves_what_trains_and_nothing_else(
    build_vit: Build, train: Callable[..., None], notation: str
) -> None:
    vit = explora(build_vit(init_values=0.1), ExPLoRAConfig.parse(notation))
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    train(vit)
    names = set(trainable_names(vit))
    for name, value in vit.state_dict().items():
        assert torch.equal(value, before[name]) == (name not in names), name


def test_k_of_a_frozen_block_never_changes_while_q_and_v_do(
    build_vit: Build, train: Callable[..., None]
) -> None:
    vit = build_vit()
    before = {k: v.clone() for k, v in vit.state_dict().items()}
    explora(vit, ExPLoRAConfig.parse('[L]-r4'))
    train(vit, steps=5)
    merge_lora(vit)
    for i, block in enumerate(vit.blocks):
        change = block.attn.qkv.weight - before[f'blocks.{i}.attn.qkv.weight']
        q, k, v = change.chunk(3)
        assert q.abs().max() > 0 and v.abs().max() > 0
        if i < 2:
            assert torch.equal(k, torch.zeros_like(k))
            assert torch.linalg.matrix_rank(q.double(), rtol=1e-4) <= 4
            assert torch.equal(block.attn.qkv.bias, before[f'blocks.{i}.attn.qkv.bias'])
        else:
            assert k.abs().max() > 0


def test_a_decoder_is_adapted_by_the_same_function(build_vit: Build) -> None:
    decoder = MAEDecoder(build_vit().patch_embed, 32, embed_dim=16, depth=2, num_heads=2)
    explora(decoder, ExPLoRAConfig.parse('[]-r8', extra=('mask_token',)))
    assert trainable_summary(decoder) == {
        'LoRA': 2 * 4 * 16 * 8,
        'norms': 2 * 4 * 16 + 2 * 16,
        'mask_token': 16,
    }


def test_a_mask_token_trains_only_if_it_never_did(build_vit: Build) -> None:
    trained, new = (build_vit(mask_token=True) for _ in range(2))
    with torch.no_grad():
        trained.mask_token.fill_(0.1)
        new.mask_token.zero_()
    for vit, trains in ((trained, False), (new, True)):
        explora(vit, ExPLoRAConfig.parse('[L]-r4'))
        assert vit.mask_token is not None and vit.mask_token.requires_grad == trains


def test_full_leaves_fixed_positions_fixed() -> None:
    vit = create_vit('vit_tiny_patch16_32', learned_position=False)
    explora(vit, ExPLoRAConfig.parse('full'))
    assert all(p.requires_grad for p in vit.parameters())
    assert 'pos_embed' in vit.state_dict() and 'pos_embed' not in dict(vit.named_parameters())
    assert vit.num_parameters == create_vit('vit_tiny_patch16_32').num_parameters


def test_what_trained_before_does_not_matter() -> None:
    vit = create_vit('vit_tiny_patch16_32')
    explora(vit, ExPLoRAConfig.parse('[L]'))
    explora(vit, ExPLoRAConfig.parse('full'))
    assert all(p.requires_grad for p in vit.parameters())


@pytest.mark.parametrize(
    ('notation', 'config'),
    [
        ('D-ExPLoRA-[L]-r32', ExPLoRAConfig((-1,), 32)),
        ('M-ExPLoRA-[1,L]-r32', ExPLoRAConfig((0, -1), 32)),
        ('DINOv2-[L]-r64', ExPLoRAConfig((-1,), 64)),
        ('MAE-[1,2,L-1,L]', ExPLoRAConfig((0, 1, -2, -1), 0)),
        (' [ L-1, L ] ', ExPLoRAConfig((-2, -1), 0)),
        ('[]-r256', ExPLoRAConfig((), 256)),
        ('[24]', ExPLoRAConfig((23,), 0)),
        ('Full', ExPLoRAConfig('all', 0)),
    ],
)
def test_the_papers_notation_is_read_and_written_back(notation: str, config: ExPLoRAConfig) -> None:
    assert ExPLoRAConfig.parse(notation) == config
    for prefix in ('', 'D', 'M'):
        assert ExPLoRAConfig.parse(config.notation(prefix)) == config
    assert ExPLoRAConfig(**config.to_dict()) == config
    assert ExPLoRAConfig.create(notation) == ExPLoRAConfig.create(config.to_dict()) == config


def test_the_notation_is_written_as_in_the_paper() -> None:
    assert ExPLoRAConfig((-1,), 32).notation('D') == 'D-ExPLoRA-[L]-r32'
    assert ExPLoRAConfig((0, -2, -1), 64).notation() == '[1,L-1,L]-r64'


@pytest.mark.parametrize(
    'notation',
    ['', 'D-ExPLoRA-[0]', '[L]-r', 'L-r32', '[L', '[L+1]', '[a]', '[L]-r-8', 'X-[L]', '[1.5]', '[-1]'],
)
def test_what_is_no_notation_is_refused(notation: str) -> None:
    with pytest.raises(ValueError, match='cannot parse notation') as caught:
        ExPLoRAConfig.parse(notation)
    assert repr(notation) in str(caught.value)


@pytest.mark.parametrize('notation', ['[25]', '[L-24]-r8', '[1,25,L]'])
def test_a_block_that_does_not_exist_is_refused(notation: str) -> None:
    with torch.device('meta'):
        vit = create_vit('vit_large_patch16_224')
    with pytest.raises(ValueError, match=r'block (25|L-24) does not exist: .* 1 to L = 24'):
        explora(vit, ExPLoRAConfig.parse(notation))


@pytest.mark.parametrize(
    ('fields', 'sentence'),
    [
        ({'rank': -1}, 'rank must be 0'),
        ({'unfrozen_blocks': -1}, 'unfrozen_blocks must be indices'),
        ({'unfrozen_blocks': None}, 'unfrozen_blocks must be indices'),
        ({'alpha': 0}, 'alpha must be positive'),
        ({'dropout': 1}, r'dropout must be in \[0, 1\)'),
        ({'targets': ['q', 'qkv']}, r"targets must be among .* got \['qkv'\]"),
    ],
)
def test_values_out_of_range_are_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ExPLoRAConfig(**fields)


def test_a_single_name_stands_for_a_list_of_one() -> None:
    assert ExPLoRAConfig(targets='proj', extra='patch_embed') == ExPLoRAConfig(  # type: ignore[arg-type]
        targets=('proj',), extra=('patch_embed',)
    )


def test_extras_train_and_unknown_ones_are_refused(build_vit: Build) -> None:
    vit = explora(build_vit(), ExPLoRAConfig.parse('[]-r2', extra=('patch_embed', 'blocks.0.mlp.fc1')))
    names = trainable_names(vit)
    assert {'patch_embed.proj.weight', 'blocks.0.mlp.fc1.bias'} <= set(names)
    with pytest.raises(ValueError, match=r"'patch' not found in the model, which contains .*patch_embed"):
        explora(build_vit(), ExPLoRAConfig(extra=('patch',)))


def test_a_model_is_not_adapted_twice(build_vit: Build, images: Tensor) -> None:
    vit = explora(build_vit(), ExPLoRAConfig())
    with pytest.raises(ValueError, match='already contains LoRA'):
        explora(vit, ExPLoRAConfig())
    explora(merge_lora(vit), ExPLoRAConfig())
    assert isinstance(vit.blocks[0].attn.qkv, nn.Linear)


def test_the_last_blocks_alone_are_adapted(build_vit: Callable[..., ViT]) -> None:
    config = ExPLoRAConfig.parse('D-ExPLoRA-[L]-r4@2')
    assert config.last_blocks == 2 and config.notation('D') == 'D-ExPLoRA-[L]-r4@2'
    vit = explora(build_vit(drop_path_rate=0.3, uniform_drop_path=True), config)
    trained = {n.split('.')[1] if n.startswith('blocks') else n.split('.')[0] for n in trainable_names(vit)}
    assert trained == {'1', '2', 'norm'} and frozen_blocks(vit) == 1
    assert not hasattr(vit.blocks[0].drop_path1, 'drop_prob')
    assert frozen_blocks(explora(build_vit(), ExPLoRAConfig.parse('[L]-r4'))) == 0
    with pytest.raises(ValueError, match=r'block 1 cannot train if only the last 2 of 3 blocks'):
        explora(build_vit(), ExPLoRAConfig.parse('[1]-r4@2'))
    with pytest.raises(ValueError, match='last_blocks must be 1 or more, and unset for full'):
        ExPLoRAConfig(last_blocks=0)


def test_a_rank_stabilized_scale_falls_with_the_root_of_the_rank(build_vit: Callable[..., ViT]) -> None:
    for stabilized, expected in ((False, 2 / 16), (True, 2 / 4)):
        config = ExPLoRAConfig(rank=16, alpha=2, rank_stabilized=stabilized)
        layer = explora(build_vit(), config).blocks[0].attn.qkv
        assert config.scale == layer.scale == expected
    assert ExPLoRAConfig(rank_stabilized=True).scale == 1


def test_registers_are_frozen_unless_they_are_named(build_vit: Callable[..., ViT]) -> None:
    config = ExPLoRAConfig.parse('[L]-r4')
    for extra, expected in (((), 0), (('reg_token',), 4 * 32)):
        vit = explora(build_vit(registers=4), config.with_extra(extra))
        assert trainable_summary(vit).get('reg_token', 0) == expected
        assert vit.num_parameters - build_vit().num_parameters >= 4 * 32
