"""The backbone compiles as one graph, for every tokenizer, and computes what it did."""

import pytest
import torch

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import builders, create_vit
from tests.test_product import TOKENIZERS, adapted, batch_of


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    """Forget earlier graphs, whose number is limited."""
    torch.compiler.reset()


@pytest.mark.parametrize(
    'tokenizer',
    [
        pytest.param('patch', marks=pytest.mark.slow),
        *(pytest.param(t, marks=pytest.mark.group(name='long')) for t in TOKENIZERS if t != 'patch'),
    ],
)
def test_an_adapted_backbone_has_no_graph_break(
    tokenizer: str, small_names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(builders._SIZES, 'tiny', (32, 2, 2))  # compiling takes as long as there are blocks
    vit = adapted(tokenizer)
    batch = batch_of(vit)
    tokens = 16 * vit(**batch).patches.shape[1]
    keep = torch.stack([torch.randperm(tokens)[: tokens // 4] for _ in range(4)])
    mask = torch.rand(4, tokens) < 0.3
    compiled = torch.compile(vit, fullgraph=True, backend='aot_eager')
    for options in ({}, {'keep': keep}, {'token_mask': mask}):
        torch.testing.assert_close(compiled(**batch, **options).cls, vit(**batch, **options).cls)


@pytest.mark.group(name='long')
def test_gradients_of_the_compiled_backbone_are_the_same(small_names: None) -> None:
    vit = create_vit('vit_small_patch8_32')
    explora(vit, ExPLoRAConfig.parse('[L]-r4'))
    with torch.no_grad():
        for name, value in vit.named_parameters():
            if 'lora_b' in name:
                value.normal_(std=0.02)
    image = torch.randn(2, 3, 32, 32)
    grads = []
    for module in (vit, torch.compile(vit, fullgraph=True, backend='aot_eager')):
        vit.zero_grad()
        module(image).patches.square().mean().backward()
        grads.append({n: p.grad.clone() for n, p in vit.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys() and any('lora_a' in name for name in grads[0])
    torch.testing.assert_close(grads[0], grads[1])
