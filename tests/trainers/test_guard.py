"""What is watched: speed, features, and whether a run collapses, which is taken back in one sentence."""

import json
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from explora_geo.checkpoints import read_adapter
from explora_geo.datamodules import FolderDataModule
from explora_geo.models.heads import HeadConfig
from explora_geo.objectives import DINOv2, LossConfig, MaskConfig, PhaseConfig, TeacherConfig
from explora_geo.trainers import ExPLoRATask, GuardConfig, OptimConfig
from explora_geo.trainers.guard import FeatureMonitor, StepClock
from explora_geo.transforms import ViewsConfig


def clusters(per_class: int = 20, distance: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(3).repeat(per_class)
    centres = distance * torch.eye(3, 8)
    return centres[labels] + 0.3 * torch.randn(len(labels), 8), labels


@pytest.mark.parametrize('kind', ['knn', 'linear'])
def test_separable_classes_score_1_and_noise_scores_chance(kind: str) -> None:
    monitor = FeatureMonitor(kind)
    features, labels = clusters()
    for part in range(0, 60, 20):
        monitor.add(features[part : part + 20], {'label': labels[part : part + 20]})
    assert monitor.score() == 1
    monitor.reset()
    monitor.add(torch.randn(600, 8), {'label': torch.arange(600) % 3})
    assert monitor.score() == pytest.approx(1 / 3, abs=0.1)


def test_the_score_of_the_same_features_is_the_same() -> None:
    features, labels = clusters(distance=0.4)
    scores = set()
    for _ in range(3):
        monitor = FeatureMonitor('knn')
        monitor.add(features, {'label': labels})
        scores.add(monitor.score())
    assert len(scores) == 1 and 0.3 < scores.pop() < 1


@pytest.mark.parametrize(
    'labels',
    [
        None,
        torch.zeros(12, 4, 4),
        torch.zeros(12).long(),
        torch.arange(12),
        [0, 1] * 6,
        torch.rand(12),
        torch.arange(12) % 2 - 1,
    ],
    ids=['no label', 'masks', 'one class', 'one image per class', 'no tensor', 'numbers', 'partly labeled'],
)
def test_without_classes_there_is_no_score(labels: object) -> None:
    monitor = FeatureMonitor('knn')
    monitor.add(torch.randn(12, 8), {} if labels is None else {'label': labels})
    assert monitor.score() is None


def test_a_rare_class_lowers_the_folds_rather_than_failing() -> None:
    features, labels = clusters()
    keep = torch.cat([(labels != 2).nonzero()[:, 0], (labels == 2).nonzero()[:2, 0]])
    monitor = FeatureMonitor('knn')
    monitor.add(features[keep], {'label': labels[keep]})
    assert 0.8 < monitor.score() <= 1


def test_half_precision_features_are_scored() -> None:
    features, labels = clusters()
    monitor = FeatureMonitor('knn')
    monitor.add(features.bfloat16(), {'label': labels})
    assert monitor.score() == 1


def test_features_have_a_rank_with_and_without_labels() -> None:
    features, labels = clusters()
    for batch in ({}, {'label': labels}):
        monitor = FeatureMonitor('knn')
        assert monitor.rank() is None
        monitor.add(features, batch)
        rank = monitor.rank()
        assert rank is not None and 2 < rank < 8


def test_features_of_which_some_lack_labels_are_not_scored() -> None:
    features, labels = clusters()
    monitor = FeatureMonitor('knn')
    monitor.add(features, {'label': labels})
    monitor.add(features, {})
    assert monitor.score() is None and monitor.rank() is not None


class SlowDataset(Dataset[dict[str, torch.Tensor]]):
    """Images that take their time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        time.sleep(self.seconds)
        return {'image': torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))}


@pytest.mark.slow
@pytest.mark.parametrize(('seconds', 'low', 'high'), [(0.3, 0.5, 1.0), (0.0, 0.0, 0.5)])
def test_the_log_says_what_share_of_the_time_was_spent_waiting(
    build_task: Any, build_trainer: Any, seconds: float, low: float, high: float
) -> None:
    trainer = build_trainer()
    trainer.fit(build_task(), DataLoader(SlowDataset(seconds), batch_size=2))
    assert low < float(trainer.callback_metrics['data_wait']) < high


def test_the_clock_leaves_out_what_stands_between_steps() -> None:
    clock = StepClock()
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
    assert 'the features collapsed at step' in task.stopped and 'keeps the weights' in task.stopped
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
    assert 'keeps the weights of step 3' in task.stopped
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
        ({'accuracy': 1.1}, r'guard\.accuracy must be in \[0, 1\], got 1.1'),
        ({'rank': -1}, r'guard\.rank must be'),
        ({'usage': 2}, r'guard\.usage must be'),
        ({'every': 0}, r'guard\.every must be at least 1 step, got 0'),
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
