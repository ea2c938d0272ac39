"""Losses in bfloat16 stay near those in float32, all along a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from explora_geo.adaptation import trainable_names
from explora_geo.checkpoints import load_backbone, read_adapter
from explora_geo.trainers import ExPLoRATask
from tests.trainers.steady_run import fit
from tests.trainers.test_resume import forget


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


@pytest.mark.slow
def test_frozen_matrices_in_bfloat16_train_the_same_adapter_and_resume(
    build_task: Callable[..., ExPLoRATask], build_data: Callable[..., Any],
    build_trainer: Callable[..., Trainer], base_file: Path, tmp_path: Path,
) -> None:  # fmt: skip
    tasks = []
    for folder, dtype in (('plain', 'float32'), ('lean', 'bfloat16')):
        seed_everything(3)
        every = ModelCheckpoint(tmp_path / folder / 'all', '{epoch}', save_top_k=-1)
        tasks.append(build_task(frozen_dtype=dtype))
        build_trainer(
            max_epochs=2, precision='bf16-mixed', callbacks=[every], enable_checkpointing=True,
            default_root_dir=tmp_path / folder,
        ).fit(tasks[-1], datamodule=build_data())  # fmt: skip
    plain, lean = (task.state_dict() for task in tasks)
    names = [f'model.backbone.{n}' for n in trainable_names(tasks[0].backbone)]
    assert all(torch.equal(plain[n], lean[n]) for n in names)
    frozen = 'model.backbone.blocks.0.mlp.fc1.weight'
    assert (plain[frozen].dtype, lean[frozen].dtype) == (torch.float32, torch.bfloat16)
    headers = [read_adapter(tmp_path / name / 'adapter.safetensors')[0] for name in ('plain', 'lean')]
    assert headers[0] == headers[1]
    merged = load_backbone('vit_tiny_patch8_32', base_file, tmp_path / 'lean' / 'adapter.safetensors')
    assert torch.equal(merged.state_dict()['blocks.0.mlp.fc1.weight'], plain[frozen])

    resumed = build_task(frozen_dtype='bfloat16')
    trainer = build_trainer(max_epochs=2, precision='bf16-mixed')
    trainer.fit(resumed, datamodule=build_data(), ckpt_path=tmp_path / 'lean' / 'all' / 'epoch=0.ckpt')
    found = resumed.state_dict()
    assert found[frozen].dtype == torch.bfloat16 and trainer.global_step == 6
    assert all(torch.equal(found[n], lean[n]) for n in names)


def test_frozen_matrices_in_bfloat16_need_a_run_that_computes_in_it(
    build_task: Callable[..., ExPLoRATask], build_data: Callable[..., Any],
    build_trainer: Callable[..., Trainer],
) -> None:  # fmt: skip
    with pytest.raises(ValueError, match='precision 32-true: set precision to bf16-mixed or frozen_dtype'):
        build_trainer().fit(build_task(frozen_dtype='bfloat16'), datamodule=build_data())
