"""Adapting with a real loss."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from explora_geo.models import ViT
from explora_geo.objectives import MAE


@pytest.fixture
def train(images: Tensor) -> Callable[..., None]:
    """A few AdamW steps of masked autoencoding on real tiles, weight decay included."""

    def run(vit: ViT, steps: int = 3) -> None:
        mae = MAE(vit, decoder_embed_dim=16, decoder_depth=1, decoder_num_heads=2).train()
        trained = [p for p in mae.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.1)
        for step in range(steps):
            optimizer.zero_grad()
            mae({'image': images}, step)['loss_mae'].backward()
            optimizer.step()

    return run
