"""Blocks compile one by one, and share what they can."""

import time
from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters
from torch.utils.data import DataLoader, Dataset

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.devices import compile_blocks, many_graphs
from explora_geo.models import create_vit
from explora_geo.objectives import MAE
from explora_geo.trainers import guard


@pytest.mark.parametrize(
    ('rate', 'most'), [(0.0, 6), pytest.param(0.5, 16, marks=pytest.mark.group(name='long'))]
)
def test_blocks_that_are_alike_compile_once_and_compute_what_they_did(
    rate: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, 'compile', partial(torch.compile, backend='aot_eager', fullgraph=True))
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


class SlowDataset(Dataset[dict[str, torch.Tensor]]):
    """Images that take their time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        return {'image': torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))}


@pytest.mark.parametrize(('seconds', 'low', 'high'), [(0.3, 0.5, 1.0), (0.0, 0.0, 0.5)])
def test_the_log_says_what_share_of_the_time_was_spent_waiting(
    build_task: Any, build_trainer: Any, seconds: float, low: float, high: float
) -> None:
    trainer = build_trainer()
    trainer.fit(build_task(), DataLoader(SlowDataset(seconds), batch_size=2))
    assert low < float(trainer.callback_metrics['data_wait']) < high


def test_the_clock_leaves_out_what_stands_between_steps() -> None:
    clock = guard.StepClock()
    assert clock.lap(4) == {}
    clock.wait()
    time.sleep(0.02)
    clock.go_on()
    time.sleep(0.02)
    found = clock.lap(4)
    assert 0 < found['images_per_s'] < 100 and 0.2 < found['data_wait'] < 0.8
    clock.wait()
    clock.pause()
    clock.go_on()
    assert clock.lap(4) == {}
