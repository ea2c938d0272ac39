"""Lightning checkpoints of ExPLoRATask: small, safe to read, resumed exactly, tied to their base."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from explora_geo.adaptation import trainable_names
from explora_geo.datamodules import FolderDataModule
from explora_geo.objectives import MAE
from explora_geo.trainers import ExPLoRATask

Task = Callable[..., ExPLoRATask]
Data = Callable[..., FolderDataModule]
Run = Callable[..., Trainer]


class SteadyMAE(MAE):
    """Masked autoencoding whose masks depend on the step alone, not on what ran before."""

    def forward(self, batch: dict[str, Any], step: int) -> dict[str, Tensor]:
        noise = torch.rand(len(batch['image']), 16, generator=torch.Generator().manual_seed(step))
        out = self.reconstruct(batch['image'], noise)
        return {'loss_mae': self.loss(batch['image'], out.pred, out.mask)}


@pytest.fixture
def loader(images: Tensor) -> DataLoader[Any]:
    samples = [{'image': image, 'label': torch.tensor(i % 2)} for i, image in enumerate(images)]
    return DataLoader(samples, batch_size=4)


def weights_of(task: ExPLoRATask) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in task.state_dict().items()}


@pytest.mark.parametrize('adaptation', ['[L]-r4', 'full'])
def test_four_epochs_equal_two_and_two_more(
    build_task: Task, build_trainer: Run, loader: DataLoader[Any], tmp_path: Path, adaptation: str
) -> None:
    every = ModelCheckpoint(tmp_path / 'all', '{epoch}', save_top_k=-1)
    objective = partial(SteadyMAE, decoder_num_heads=2)
    straight = build_task(objective=objective, adaptation=adaptation)
    long = build_trainer(max_epochs=4, callbacks=[every], enable_checkpointing=True)
    long.fit(straight, loader, loader)
    seed_everything(99)
    resumed = build_task(objective=objective, adaptation=adaptation)
    rest = build_trainer(max_epochs=4)
    rest.fit(resumed, loader, loader, ckpt_path=tmp_path / 'all' / 'epoch=1.ckpt')
    assert rest.global_step == long.global_step == 8
    assert resumed.features.starting == straight.features.starting
    expected = weights_of(straight)
    for name, value in weights_of(resumed).items():
        assert torch.equal(value, expected[name]), name


@pytest.fixture
def checkpoint(
    build_task: Task, build_data: Data, build_trainer: Run, tmp_path: Path
) -> tuple[ExPLoRATask, Path]:
    """A task trained for two epochs and its checkpoint."""
    task = build_task()
    trainer = build_trainer(max_epochs=2)
    trainer.fit(task, datamodule=build_data())
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    return task, tmp_path / 'last.ckpt'


def test_the_file_is_read_without_code_and_leaves_frozen_tensors_out(
    checkpoint: tuple[ExPLoRATask, Path],
) -> None:
    task, path = checkpoint
    content = torch.load(path, weights_only=True)
    kept = [k for k in content['state_dict'] if k.startswith('model.backbone.')]
    assert kept == [k for k in trainable_names(task) if k.startswith('model.backbone.')]
    assert content['global_step'] == 6
    state = content['optimizer_states'][0]['state']
    assert len(state) == len(trainable_names(task))
    assert content['lr_schedulers'][0]['last_epoch'] == 6


def test_load_from_checkpoint_gives_the_trained_task(
    checkpoint: tuple[ExPLoRATask, Path], base_file: Path
) -> None:
    task, path = checkpoint
    objective = partial(MAE, decoder_num_heads=2)
    loaded = ExPLoRATask.load_from_checkpoint(path, weights=str(base_file), objective=objective)
    expected = weights_of(task)
    assert all(torch.equal(v, expected[k]) for k, v in weights_of(loaded).items())
    assert (loaded.config, loaded.optim) == (task.config, task.optim)


def test_a_checkpoint_of_another_objective_is_refused_by_name(
    checkpoint: tuple[ExPLoRATask, Path], base_file: Path
) -> None:
    _, path = checkpoint
    content = torch.load(path, weights_only=True)
    torch.save({**content, 'objective': 'D'}, path)
    with pytest.raises(ValueError, match=r"of D-ExPLoRA and the task of M-ExPLoRA: .*'D-ExPLoRA-\[L\]-r\d"):
        ExPLoRATask.load_from_checkpoint(
            path, weights=str(base_file), objective=partial(MAE, decoder_num_heads=2)
        )


def test_a_finished_run_resumes_for_longer_at_a_rate_above_zero(
    checkpoint: tuple[ExPLoRATask, Path], build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    task, path = checkpoint
    longer = build_task()
    trainer = build_trainer(max_epochs=3)
    trainer.fit(longer, datamodule=build_data(), ckpt_path=path)
    assert trainer.global_step == 9 and trainer.current_epoch == 3
    moved = (longer.backbone.cls_token - task.backbone.cls_token).abs().max()
    assert moved > 1e-4


def test_resuming_on_other_base_weights_is_refused(
    checkpoint: tuple[ExPLoRATask, Path],
    base_state: dict[str, Tensor],
    build_task: Task,
    build_data: Data,
    build_trainer: Run,
    tmp_path: Path,
) -> None:
    other = {k: v + 0.01 if k == 'pos_embed' else v for k, v in base_state.items()}
    torch.save(other, tmp_path / 'other.pth')
    task = build_task(weights=str(tmp_path / 'other.pth'))
    with pytest.raises(ValueError, match='trained from other weights or another adaptation'):
        build_trainer(max_epochs=3).fit(task, datamodule=build_data(), ckpt_path=checkpoint[1])


def test_resuming_with_another_adaptation_is_refused(
    checkpoint: tuple[ExPLoRATask, Path], build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    task = build_task(adaptation='[1,L]-r4')
    with pytest.raises(ValueError, match='give the same weights and adaptation'):
        build_trainer(max_epochs=3).fit(task, datamodule=build_data(), ckpt_path=checkpoint[1])


def test_resuming_with_another_scale_of_lora_is_refused(
    checkpoint: tuple[ExPLoRATask, Path], build_task: Task, build_data: Data, build_trainer: Run
) -> None:
    config = checkpoint[0].config
    task = build_task(adaptation=replace(config, alpha=1.0))
    with pytest.raises(
        ValueError, match=f'scales LoRA by 1, the task by .*: give adaptation with alpha {config.rank}'
    ):
        build_trainer(max_epochs=3).fit(task, datamodule=build_data(), ckpt_path=checkpoint[1])
