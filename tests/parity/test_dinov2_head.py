"""Our projection head computes what facebookresearch/dinov2's `DINOHead` computes, from its own keys."""

from collections.abc import Callable
from typing import Any

import torch
from torch.testing import assert_close

from explora_geo.models.heads import HeadConfig, ProjectionHead


@torch.no_grad()
def test_logits_are_the_references(golden: Callable[[str], Any]) -> None:
    found = golden('dinov2_head')
    config = found.config
    sizes = HeadConfig(config['out_dim'], config['hidden_dim'], config['bottleneck_dim'], config['nlayers'])
    head = ProjectionHead(config['in_dim'], sizes)
    head.load_state_dict(found.state)
    assert_close(head(found.io['features']), found.io['logits'], atol=1e-5, rtol=0)
