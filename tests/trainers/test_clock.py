"""The share of the time in which training waits for images."""

import time
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler
from torch.utils.data import DataLoader, Dataset

from explora_geo.trainers.clock import LoaderClock, install_clock


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


def test_the_clock_counts_what_it_was_asked_for_once() -> None:
    clock = LoaderClock()
    clock.start('[_TrainingEpochLoop].train_dataloader_next')
    time.sleep(0.02)
    clock.stop('[_TrainingEpochLoop].train_dataloader_next')
    clock.start('optimizer_step')
    time.sleep(0.05)
    clock.stop('optimizer_step')
    assert 0.02 <= clock.take() < 0.05
    assert clock.take() == 0


def test_a_profiler_of_the_user_is_left_in_place() -> None:
    trainer = Trainer(profiler='simple', logger=False, enable_checkpointing=False)
    install_clock(trainer)
    assert isinstance(trainer.profiler, SimpleProfiler)
    plain = Trainer(logger=False, enable_checkpointing=False)
    assert type(plain.profiler) is PassThroughProfiler
    install_clock(plain)
    assert isinstance(plain.profiler, LoaderClock)
