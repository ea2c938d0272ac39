"""A run that collapses is stopped in one sentence and taken back to its best state."""

import json
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor

from explora_geo.checkpoints import read_adapter
from explora_geo.datamodules import FolderDataModule
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import DINOv2, LossConfig, MaskConfig, PhaseConfig, TeacherConfig
from explora_geo.trainers import ExPLoRATask, GuardConfig, OptimConfig
from explora_geo.trainers.guard import FeatureMonitor
from explora_geo.transforms import ViewsConfig

Task = Callable[..., ExPLoRATask]
Data = Callable[..., FolderDataModule]
Run = Callable[..., Trainer]
SMALL: dict[str, Any] = {
    'head': HeadConfig(24, 16, 8),
    'views': ViewsConfig(global_size=32, local_size=16, num_local=1),
    'phases': PhaseConfig(freeze_last_layer_steps=0, head_warmup_steps=0),
}


class Sabotaged(DINOv2):
    """Self-distillation whose teacher forgets everything from its fourth step on."""

    def after_step(self, step: int) -> None:
        super().after_step(step)
        if step >= 4:
            with torch.no_grad():
                self.final_backbone.norm.weight.zero_()
                self.final_backbone.norm.bias.fill_(1)


@pytest.fixture
def sabotaged(build_task: Task) -> Task:
    return partial(build_task, objective=partial(Sabotaged, **SMALL))


def snapshots(task: ExPLoRATask) -> list[dict[str, Tensor]]:
    """What trains in the teacher after every step, while the run goes on."""
    kept: list[dict[str, Tensor]] = []
    act = task.model.after_step

    def after_step(step: int) -> None:
        act(step)
        kept.append({k: v.clone() for k, v in task.model.final_backbone.state_dict().items()})

    task.model.after_step = after_step  # type: ignore[method-assign]
    return kept


def test_self_distillation_made_to_collapse_is_stopped(
    build_task: Task, build_data: Data, build_trainer: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # No average, no centering, nothing that spreads: all images soon get one prototype.
    broken = {
        **SMALL,
        'teacher': TeacherConfig(momentum=0.0, center_momentum=0.999),
        'masks': MaskConfig(probability=0),
        'losses': LossConfig(koleo_weight=0),
    }
    task = build_task(
        weights=None,
        adaptation='full',
        objective=partial(DINOv2, **broken),
        optim=OptimConfig(base_lr=0.02, lr_scaling='none', warmup_steps=0),
        guard=GuardConfig(every=5),
        monitor_features='none',
    )
    start = {k: v.clone() for k, v in task.model.final_backbone.state_dict().items()}
    trainer = build_trainer(max_epochs=40, limit_val_batches=0)
    with caplog.at_level(logging.WARNING, 'explora_geo'):
        trainer.fit(task, datamodule=build_data())
    assert 5 <= trainer.global_step < 120
    assert task.stopped in caplog.text and '\n' not in task.stopped
    assert 'the features collapsed at step' in task.stopped and 'is kept' in task.stopped
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    assert report['stopped'] == task.stopped
    assert all(torch.isfinite(v).all() for v in start.values())


def test_a_fallen_accuracy_stops_and_the_best_state_is_left(
    sabotaged: Task, build_data: Data, build_trainer: Run, tmp_path: Path
) -> None:
    task = sabotaged()
    kept = snapshots(task)
    trainer = build_trainer(max_epochs=10)
    trainer.fit(task, datamodule=build_data())
    assert trainer.global_step == 6 and task.features.starting is not None
    assert 'k-NN accuracy' in task.stopped and 'at step 6' in task.stopped
    assert task.features._kept_step in (0, 3)
    _, state = read_adapter(tmp_path / 'run' / 'adapter.safetensors')
    teacher = task.model.final_backbone.state_dict()
    assert all(torch.equal(v, teacher[k]) for k, v in state.items())
    assert teacher['norm.weight'].abs().min() > 0
    if task.features._kept_step == 3:
        assert all(torch.equal(v, kept[2][k]) for k, v in teacher.items())


def test_without_labels_the_effective_rank_is_watched(
    sabotaged: Task, build_trainer: Run, images: Tensor
) -> None:
    samples = [{'image': image} for image in images]
    loader = torch.utils.data.DataLoader(samples, batch_size=4)
    task = sabotaged(guard=GuardConfig(rank=0.6))
    trainer = build_trainer(max_epochs=10)
    trainer.fit(task, loader, loader)
    assert trainer.global_step == 4 and 'effective rank of validation features is 1' in task.stopped


def test_without_validation_the_training_features_are_watched(
    sabotaged: Task, build_trainer: Run, images: Tensor
) -> None:
    loader = torch.utils.data.DataLoader([{'image': image} for image in images], batch_size=4)
    task = sabotaged(guard=GuardConfig(rank=0.6, usage=0, every=2), monitor_features='none')
    kept = snapshots(task)
    trainer = build_trainer(max_epochs=10)
    trainer.fit(task, loader)
    # The teacher is lost after step 4; its features are next looked at in step 6.
    assert trainer.global_step == 6 and 'effective rank of training features is 1' in task.stopped
    # The look that precedes step 4 is the last at which all is well.
    assert 'learned by step 3 is kept' in task.stopped
    assert torch.equal(task.model.final_backbone.norm.weight, kept[2]['norm.weight'])


@pytest.mark.parametrize('guard', [None, GuardConfig(accuracy=0, rank=0, usage=0)])
def test_a_guard_can_be_left_out(
    sabotaged: Task, build_data: Data, build_trainer: Run, guard: GuardConfig | None
) -> None:
    task = sabotaged(guard=guard)
    trainer = build_trainer(max_epochs=3)
    trainer.fit(task, datamodule=build_data())
    assert trainer.global_step == 9 and not task.stopped


def test_a_sound_run_is_left_alone(build_task: Task, build_data: Data, build_trainer: Run) -> None:
    task = build_task(objective=partial(DINOv2, **SMALL), optim=OptimConfig(1e-4, 'none'))
    trainer = build_trainer(max_epochs=3)
    trainer.fit(task, datamodule=build_data())
    assert trainer.global_step == 9 and not task.stopped


def test_a_resumed_run_is_compared_with_the_first_start(
    build_task: Task, build_data: Data, build_trainer: Run, tmp_path: Path
) -> None:
    first = build_task(objective=partial(DINOv2, **SMALL))
    trainer = build_trainer(max_epochs=1)
    trainer.fit(first, datamodule=build_data())
    trainer.save_checkpoint(tmp_path / 'last.ckpt')
    second = build_task(objective=partial(DINOv2, **SMALL))
    rest = build_trainer(max_epochs=2)
    rest.fit(second, datamodule=build_data(), ckpt_path=tmp_path / 'last.ckpt')
    assert first.features.first == second.features.first
    assert first.features.first['k-NN accuracy'] == first.features.starting == second.features.starting


def test_a_guard_survives_in_the_hyper_parameters(build_task: Task) -> None:
    task = build_task(guard=GuardConfig(accuracy=0.5))
    assert build_task(guard=task.hparams['guard']).guard == GuardConfig(accuracy=0.5)


@pytest.mark.parametrize(
    ('fields', 'sentence'),
    [
        ({'accuracy': 1.1}, r'accuracy of a guard must be in \[0, 1\], got 1.1'),
        ({'rank': -1}, 'rank of a guard'),
        ({'usage': 2}, 'usage of a guard'),
        ({'every': 0}, 'every of a guard must be at least 1 step, got 0'),
    ],
)
def test_bounds_out_of_range_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GuardConfig(**fields)


def test_a_short_batch_is_no_collapse(build_task: Task, build_trainer: Run) -> None:
    task = build_task(objective=partial(DINOv2, **SMALL))
    trainer = build_trainer()
    guard = FeatureMonitor('none', GuardConfig(every=1, usage=0, rank=0.5))
    task.trainer = trainer
    guard.on_train_start(trainer, task)
    optimizer = torch.optim.SGD(task.parameters(), lr=0)
    for rows, stopped in ((32, False), (2, False), (32, False), (64, False)):
        task.model.watched = torch.randn(rows, 32)  # two rows have rank 2 at most
        guard.on_before_optimizer_step(trainer, task, optimizer)
        assert bool(task.stopped) == stopped
    task.model.watched = torch.ones(32, 32) + 1e-3 * torch.randn(32, 1)
    guard.on_before_optimizer_step(trainer, task, optimizer)
    assert 'effective rank of training features' in task.stopped
