"""An objective computes where its images are: the meta device has no numbers that another one could read."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.models import create_vit
from explora_geo.models.heads import HeadConfig
from explora_geo.models.vit import ViT
from explora_geo.objectives import MAE, DINOv2, Objective, PhaseConfig
from explora_geo.transforms import ViewsConfig

IMAGES, SIZE = 4, 32
TOKENIZERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    'patch': ({}, (3,)),
    'group-channel': ({'channel_groups': [['red', 'green'], ['blue']]}, (3,)),
    'temporal': ({'num_frames': 2}, (2, 3)),
}


def dinov2(vit: ViT) -> DINOv2:
    return DINOv2(
        vit, HeadConfig(24, 16, 8), views=ViewsConfig(SIZE, 16, 3), phases=PhaseConfig(head_warmup_steps=0)
    )


@pytest.mark.parametrize('tokenizer', TOKENIZERS)
@pytest.mark.parametrize('objective', [MAE, dinov2])
def test_a_step_needs_no_other_device_and_waits_for_no_number(
    objective: Callable[[ViT], Objective], tokenizer: str, small_names: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The meta device has no autocast; nothing here needs it.
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda *args: False)
    monkeypatch.setattr(torch, 'autocast', lambda *args, **kwargs: contextlib.nullcontext())
    options, channels = TOKENIZERS[tokenizer]
    needed = MAE.backbone_options if objective is MAE else DINOv2.backbone_options
    vit = create_vit(
        'vit_tiny_patch8_32', img_size=SIZE, tokenizer=tokenizer, tokenizer_options=options, **needed
    )
    explora(vit, ExPLoRAConfig.parse('[L]-r4'))
    model = objective(vit).to('meta').train()
    model.set_schedule(10, 10)

    def empty(count: int, size: int) -> Tensor:
        return torch.empty(count, *channels, size, size, device='meta')

    batch: dict[str, Any] = {'image': empty(IMAGES, SIZE), 'views': [empty(2 * IMAGES, SIZE), empty(12, 16)]}
    if tokenizer == 'temporal':
        batch['timestamps'] = torch.empty(IMAGES, 2, 3, device='meta')
    losses = model(batch, 5)
    assert losses and all(loss.device.type == 'meta' for loss in losses.values())
    try:
        sum(losses.values()).backward()
    except NotImplementedError as error:  # torch 2.9 has no weight norm's backward pass there
        assert '_weight_norm_interface_backward' in str(error)
        return
    model.after_step(5)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.device.type == 'meta' for p in trained)
