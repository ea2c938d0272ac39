"""Every objective works with every tokenizer, form of positions and registers, for two optimizer steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import load_backbone, save_adapter
from explora_geo.checkpoints.sources import StoredWeights
from explora_geo.models import RotaryConfig, TrunkConfig, ViT, create_vit
from explora_geo.models.heads import HeadConfig
from explora_geo.models.tokenizers import build_tokenizer
from explora_geo.objectives import MAE, Anchor, DINOv2, GramConfig, MaskConfig, Objective, PhaseConfig
from explora_geo.transforms import ViewsConfig

TOKENIZERS: dict[str, dict[str, Any]] = {
    'patch': {},
    'group-channel': {},
    'temporal': {'tokenizer_options': {'num_frames': 2}},
}


def mae(vit: ViT) -> MAE:
    return MAE(vit, decoder_embed_dim=32, decoder_depth=1, decoder_num_heads=2)


def dinov2(vit: ViT, **kwargs: Any) -> DINOv2:
    kwargs = {'gram': GramConfig(start_steps=0, preserve_weight=1), **kwargs}
    views = ViewsConfig(global_size=32, local_size=16, num_local=2)
    phases = PhaseConfig(freeze_last_layer_steps=0, head_warmup_steps=0)
    return DINOv2(vit, HeadConfig(24, 16, 8), views=views, phases=phases, **kwargs)


# Forms of position and numbers of registers
TRUNKS = {
    'table': TrunkConfig(),
    'table, registers': TrunkConfig(registers=4),
    'rotary': TrunkConfig(rotary=RotaryConfig(jitter=1.2)),
    'rotary, registers': TrunkConfig(rotary=RotaryConfig(), registers=4, qkv_bias=False, init_values=0.1),
}


OBJECTIVES: dict[str, Callable[[ViT], Objective]] = {'mae': mae, 'dinov2': dinov2, 'anchor': Anchor}


def adapted(tokenizer: str, objective: str = 'dinov2', trunk: str = 'table') -> ViT:
    """A backbone of 3 blocks and width 32 as the objective needs it, adapted as [L]-r4."""
    needs = dict({'mae': MAE, 'dinov2': DINOv2, 'anchor': Anchor}[objective].backbone_options)
    options = dict(TOKENIZERS[tokenizer].get('tokenizer_options', {}))
    config = TRUNKS[trunk]
    if config.rotary and tokenizer != 'patch':
        options['slot_dim'] = 30 if tokenizer == 'temporal' else 32
    resized = needs.pop('dynamic_img_size', False)
    parts = build_tokenizer(tokenizer, 32, 32, 8, dynamic_img_size=resized, options=options)
    vit = ViT(parts, 32, 3, 2, config, **needs)
    explora(vit, ExPLoRAConfig.parse('[L]-r4').with_extra(vit.patch_embed.fresh))
    return vit


def batch_of(vit: ViT) -> dict[str, Tensor]:
    """Four random images as the tokenizer reads them."""
    bands = len(vit.patch_embed.bands)
    if vit.patch_embed.kind == 'temporal':
        return {'image': torch.randn(4, 2, bands, 32, 32), 'timestamps': torch.randint(0, 12, (4, 2, 3))}
    return {'image': torch.randn(4, bands, 32, 32)}


@pytest.mark.parametrize('objective', OBJECTIVES)
@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@pytest.mark.parametrize('trunk', TRUNKS)
def test_two_steps_move_what_trains_and_nothing_else(objective: str, tokenizer: str, trunk: str) -> None:
    vit = adapted(tokenizer, objective, trunk)
    model = OBJECTIVES[objective](vit)
    model.set_schedule(4, 4)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(2):
        losses = model(batch_of(vit), step)
        loss = torch.stack(list(losses.values())).sum()
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_step(step + 1)
    moved = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    # A teacher follows what trains, and centers follow the teacher.
    followers = {k for k in before if k.startswith(('teacher.', 'assign_', 'anchor.archive.'))}
    assert moved - followers <= trained
    averaged = {k.removeprefix('teacher.parts.') for k in moved if k.startswith('teacher.')}
    assert averaged <= {k.removeprefix('teacher.parts.') for k in trained}
    assert {k for k in trained if 'lora_a' in k or k.startswith('backbone.patch_embed')} <= moved


@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@pytest.mark.parametrize('shared', [False, True])
def test_tokens_are_hidden_slot_by_slot_or_in_all_slots_at_once(
    tokenizer: str, shared: bool, small_names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    vit = adapted(tokenizer)
    model = dinov2(vit, masks=MaskConfig(ratio=(0.4, 0.5), shared_across_slots=shared))
    seen = []
    forward = vit.forward

    def spy(image: Tensor, **kwargs: Any) -> Any:
        seen.append(kwargs.get('token_mask'))
        return forward(image, **kwargs)

    monkeypatch.setattr(vit, 'forward', spy)
    model(batch_of(vit), 0)
    mask = seen[0]
    assert mask.shape == (8, vit.patch_embed.num_slots, 16) and seen[1] is None
    hidden = mask[mask.any(2).any(1)]
    assert len(hidden) == 4
    alike = (hidden == hidden[:, :1]).all()
    assert alike if shared or hidden.shape[1] == 1 else not alike


@pytest.mark.parametrize('tokenizer', TOKENIZERS)
def test_a_teachers_adapter_gives_its_features_on_the_same_base(
    tokenizer: str, small_names: None, tmp_path: Path
) -> None:
    vit = adapted(tokenizer)
    model = dinov2(vit)
    model.set_schedule(10, 10)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for step in range(3):
        torch.stack(list(model(batch_of(vit), step).values())).sum().backward()
        optimizer.step()
        model.after_step(step + 1)
    config = ExPLoRAConfig.parse('[L]-r4').with_extra(vit.patch_embed.fresh)
    save_adapter(tmp_path / 'a.safetensors', vit, 'vit_tiny_patch8_32', config, model.final_backbone)
    random = create_vit('vit_tiny_patch8_32', tokenizer=tokenizer, **TOKENIZERS[tokenizer])
    weights = StoredWeights(base_of(vit, random), 'memory')
    base = load_backbone('vit_tiny_patch8_32', weights, tmp_path / 'a.safetensors')
    batch = batch_of(vit)
    with torch.no_grad():
        found = base(batch['image'], timestamps=batch.get('timestamps'))
        expected = model.final_backbone(batch['image'], timestamps=batch.get('timestamps'))
    torch.testing.assert_close(found.cls, expected.cls, atol=1e-5, rtol=0)


def base_of(vit: ViT, base: ViT) -> dict[str, Tensor]:
    """Frozen weights of an adapted backbone, and numbers of no matter where it trains."""
    state = vit.state_dict()
    return {k: state.get(k, v) for k, v in base.state_dict().items()}
