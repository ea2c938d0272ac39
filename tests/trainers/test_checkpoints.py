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
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import MAE, DINOv2, PhaseConfig
from explora_geo.trainers import ExPLoRATask

Task = Callable[..., ExPLoRATask]
Data = Callable[..., FolderDataModule]
Run = Callable[..., Trainer]
MAE_SMALL = partial(MAE, decoder_num_heads=2)
DINOV2_SMALL = partial(
    DINOv2,
    head=HeadConfig(prototypes=24, hidden_dim=16, bottleneck_dim=8),
    phases=PhaseConfig(freeze_last_layer_fraction=0.5, head_warmup_fraction=0.3),
)


@pytest.fixture
def loader(images: Tensor) -> DataLoader[Any]:
    samples = [{'image': image, 'label': torch.tensor(i % 2)} for i, image in enumerate(images)]
    return DataLoader(samples, batch_size=4)


def weights_of(task: ExPLoRATask) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in task.state_dict().items()}


@pytest.mark.parametrize('objective', [MAE_SMALL, DINOV2_SMALL], ids=['mae', 'dinov2'])
def test_four_epochs_equal_two_and_two_more(
    build_task: Task, build_trainer: Run, loader: DataLoader[Any], tmp_path: Path, objective: Any
) -> None:
    every = ModelCheckpoint(tmp_path / 'all', '{epoch}', save_top_k=-1)
    straight = build_task(objective=objective)
    long = build_trainer(max_epochs=4, callbacks=[every], enable_checkpointing=True)
    long.fit(straight, loader, loader)
    seed_everything(99)
    resumed = build_task(objective=objective)
    rest = build_trainer(max_epochs=4)
    rest.fit(resumed, loader, loader, ckpt_path=tmp_path / 'all' / 'epoch=1.ckpt')
    assert rest.global_step == long.global_step == 8
    assert resumed.features.starting == straight.features.starting
    found, expected = weights_of(resumed), weights_of(straight)
    assert set(found) == set(expected)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    if objective is DINOV2_SMALL:
        assert found['model.assign_cls.center.center'].abs().max() > 0


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
    loaded = ExPLoRATask.load_from_checkpoint(path, weights=str(base_file), objective=MAE_SMALL)
    expected = weights_of(task)
    assert all(torch.equal(v, expected[k]) for k, v in weights_of(loaded).items())
    assert (loaded.config, loaded.optim) == (task.config, task.optim)


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


def test_another_base_adaptation_scale_or_objective_is_refused(
    checkpoint: tuple[ExPLoRATask, Path],
    base_state: dict[str, Tensor],
    build_task: Task,
    build_data: Data,
    build_trainer: Run,
    tmp_path: Path,
) -> None:
    (task, path), other = checkpoint, tmp_path / 'other.pth'
    torch.save({k: v + 0.01 if k == 'pos_embed' else v for k, v in base_state.items()}, other)
    alpha = rf'scales LoRA by 1, but the task by .*: use an adaptation with alpha {task.config.rank}'
    for change, sentence in (
        ({'weights': str(other)}, 'trained from different weights or with a different adaptation'),
        ({'adaptation': '[1,L]-r4'}, 'pass the same weights and adaptation'),
        ({'adaptation': replace(task.config, alpha=1.0)}, alpha),
    ):
        with pytest.raises(ValueError, match=sentence):
            build_trainer(max_epochs=3).fit(build_task(**change), datamodule=build_data(), ckpt_path=path)
    torch.save({**torch.load(path, weights_only=True), 'objective': 'D'}, path)
    with pytest.raises(ValueError, match=r"D-ExPLoRA, but the task is M-ExPLoRA: .*'D-ExPLoRA-\[L\]-r\d"):
        build_trainer(max_epochs=3).fit(build_task(), datamodule=build_data(), ckpt_path=path)
