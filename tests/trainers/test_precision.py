"""Losses in bfloat16 stay near those in float32, all along a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback

from explora_geo.checkpoints import load_backbone
from explora_geo.trainers import ExPLoRATask
from tests.trainers.steady_run import fit
from tests.trainers.test_steady import forget


class Losses(Callback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, *args: Any) -> None:
        self.values.append(float(outputs['loss']))


@pytest.mark.parametrize(('objective', 'nats'), [('mae', 0.0), ('dinov2', 0.02)])
def test_bfloat16_follows_float32_within_two_percent(
    steady_folder: Path, objective: str, nats: float
) -> None:
    # DINOv2's loss is a sum of terms of both signs, which two percent of the sum would hold to less.
    losses = []
    for precision in ('32-true', 'bf16-mixed'):
        forget(steady_folder)
        kept = Losses()
        fit(steady_folder, objective, 12, callbacks=[kept], precision=precision, every=None)
        losses.append(torch.tensor(kept.values))
    assert len(losses[0]) == 12 and not torch.equal(*losses)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.02, atol=nats)


def test_an_adapter_trained_in_half_precision_fits_the_base_it_was_loaded_from(
    build_task: Callable[..., ExPLoRATask], build_data: Callable[..., Any],
    build_trainer: Callable[..., Trainer], base_file: Path, tmp_path: Path,
) -> None:  # fmt: skip
    trainer = build_trainer(max_steps=1, limit_val_batches=0, precision='bf16-true')
    trainer.fit(build_task(), datamodule=build_data())
    (adapter,) = (tmp_path / 'run').rglob('adapter.safetensors')
    assert load_backbone('vit_tiny_patch8_32', base_file, adapter).embed_dim == 32
