"""Where a model runs, in which precision, and by which kernels."""

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer
from torch._dynamo.utils import counters

from explora_geo import devices
from explora_geo._compat import many_graphs
from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.devices import compile_blocks, faster_precision, pick_device
from explora_geo.models import blocks, create_vit
from explora_geo.objectives import MAE


@pytest.fixture
def unmeasured() -> Iterator[None]:
    """Forget the choice before and after."""
    faster_precision.cache_clear()
    yield
    faster_precision.cache_clear()


@pytest.mark.parametrize(('bf16', 'chosen'), [(0.5, 'bf16-mixed'), (0.9, '32-true'), (9.0, '32-true')])
def test_the_precision_is_the_one_that_is_clearly_faster(
    unmeasured: None, monkeypatch: pytest.MonkeyPatch, bf16: float, chosen: str
) -> None:
    times = iter([[1.0, 1.2], [bf16, 2 * bf16]])  # float32 first
    monkeypatch.setattr(devices.timeit, 'repeat', lambda *args, **kwargs: next(times))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert faster_precision() == chosen == faster_precision()


def test_the_measured_precision_is_one_that_lightning_knows(unmeasured: None) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    trainer = Trainer(
        accelerator='cpu', precision=faster_precision(), logger=False, enable_checkpointing=False
    )
    assert trainer.precision == faster_precision() and torch.equal(torch.get_rng_state(), state)


def test_a_device_is_picked_by_name_or_refused() -> None:
    assert pick_device('cpu').type == 'cpu'
    assert pick_device().type == ('cuda' if torch.cuda.is_available() else 'cpu')
    for name in ('tpu-9', 'cuda:99'):
        with pytest.raises(ValueError, match=f"device '{name}' is not available: use cpu, cuda or auto"):
            pick_device(name)


@pytest.mark.parametrize(
    ('rate', 'most'),
    [
        pytest.param(0.0, 6, marks=pytest.mark.slow),
        pytest.param(0.5, 16, marks=pytest.mark.group(name='long')),
    ],
)
def test_blocks_that_are_alike_compile_once_and_compute_what_they_did(
    rate: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager', fullgraph=True))
    monkeypatch.setattr(blocks, 'SUBSET_RATE', 1.0)  # compiled blocks drop image by image
    vit = create_vit('vit_tiny_patch16_224', img_size=32, drop_path_rate=rate)
    explora(vit, ExPLoRAConfig.parse('[L]-r4'))
    mae = MAE(vit, decoder_embed_dim=32, decoder_depth=4, decoder_num_heads=2)
    image, grads, names = torch.randn(2, 3, 32, 32), [], list(mae.state_dict())
    for _ in range(2):
        torch.manual_seed(0)
        mae.zero_grad()
        with many_graphs():
            sum(mae({'image': image}, 0).values()).backward()
        grads.append({n: p.grad for n, p in mae.named_parameters() if p.grad is not None})
        compile_blocks(mae)
    torch.testing.assert_close(grads[1], grads[0])
    graphs = counters['stats']['unique_graphs']
    assert 3 <= graphs <= most  # of twelve blocks and four of the decoder, and none of them gave up
    assert not counters['graph_break'] and not counters['unimplemented']
    assert list(mae.state_dict()) == names
