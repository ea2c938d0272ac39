"""What is drawn for a batch follows from the seed and its number; stopped runs go on exactly."""

import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from explora_geo.adaptation.frozen import FrozenLinear
from explora_geo.datamodules import FolderDataModule
from explora_geo.trainers import ExPLoRATask, steady
from explora_geo.trainers.steady import SteadyTask, seed_all
from tests.trainers.steady_run import fit


class Stopped(Callback):
    """Stops a run after a batch, before its checkpoint is written."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            raise RuntimeError('stopped')


def weights(folder: Path, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in fit(folder, *args, **kwargs).state_dict().items()}


def forget(folder: Path) -> None:
    (folder / 'run' / 'last.ckpt').unlink(missing_ok=True)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def plain(data: FolderDataModule) -> DataLoader[Any]:
    """A loader as any other package makes it."""
    return DataLoader(
        data.train_dataset, batch_size=4, shuffle=True, drop_last=True, collate_fn=data.collate_fn
    )


def distributed(data: FolderDataModule) -> DataLoader[Any]:
    """The same with the sampler that Lightning gives each of several processes."""
    sampler = DistributedSampler(data.train_dataset, num_replicas=1, rank=0, seed=4)
    options: dict[str, Any] = {'drop_last': True, 'collate_fn': data.collate_fn}
    return DataLoader(data.train_dataset, batch_size=4, sampler=sampler, **options)


@pytest.mark.parametrize(
    ('objective', 'batch', 'settings'),
    [
        ('mae', 2, {}),
        ('mae', 4, {}),  # four batches are an epoch
        ('mae', 9, {'limit_train_batches': 3, 'check_val_every_n_epoch': 1}),
        ('mae', 5, {'accumulate_grad_batches': 2}),
        ('mae', 6, {'loader': plain}),
        ('mae', 6, {'loader': distributed}),
        ('mae', 5, {'val_check_interval': 2, 'check_val_every_n_epoch': 1}),
        ('dinov2', 4, {'accumulate_grad_batches': 2}),
        ('dinov2', 7, {}),
        ('dinov2', 8, {'check_val_every_n_epoch': 1}),
        ('dinov2', 5, {'workers': 2}),
    ],
    ids=lambda value: str(value).split(' at 0x')[0],
)
def test_a_stopped_run_goes_on_exactly(
    steady_folder: Path, objective: str, batch: int, settings: dict[str, Any]
) -> None:
    steps = 6 if 'accumulate_grad_batches' in settings else 11
    expected = weights(steady_folder, objective, steps, **settings)
    forget(steady_folder)
    with pytest.raises(RuntimeError, match='stopped'):
        fit(steady_folder, objective, steps, callbacks=[Stopped(batch)], **settings)
    # Another seed in the process that goes on must not matter.
    assert_equal(weights(steady_folder, objective, steps, **settings, seed=8), expected)


def test_the_number_of_workers_changes_nothing(steady_folder: Path) -> None:
    expected = weights(steady_folder, 'dinov2', 6)
    for workers in (1, 4):
        forget(steady_folder)
        assert_equal(weights(steady_folder, 'dinov2', 6, workers=workers), expected)
    forget(steady_folder)
    other = weights(steady_folder, 'dinov2', 6, seed=4)
    assert not all(torch.equal(v, other[k]) for k, v in expected.items())


def test_every_validation_sees_the_same_masks(steady_folder: Path) -> None:
    class Drawn(Callback):
        def __init__(self) -> None:
            self.validation: list[float] = []
            self.training: list[float] = []

        def on_validation_batch_start(self, *args: Any) -> None:
            self.validation.append(float(torch.rand(())))

        def on_train_batch_start(self, *args: Any) -> None:
            self.training.append(float(torch.rand(())))

    drawn = Drawn()
    fit(steady_folder, 'mae', 8, callbacks=[drawn], check_val_every_n_epoch=1)
    assert len(drawn.validation) >= 2 and len(set(drawn.validation)) == 1
    assert len(set(drawn.training)) == 8


def test_a_seed_sets_all_random_states() -> None:
    drawn = []
    for _ in range(2):
        seed_all(4)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


def test_sharded_matrices_are_converted_at_every_use(
    build_task: Callable[..., ExPLoRATask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steady, 'install_checkpoint_io', lambda trainer: None)
    task = build_task()
    for strategy, kept in ((SingleDeviceStrategy(), True), (ModelParallelStrategy(1, 1), False)):
        monkeypatch.setattr(ExPLoRATask, 'trainer', SimpleNamespace(strategy=strategy))
        SteadyTask.setup(task, 'fit')
        assert {m.keeps_copy for m in task.modules() if isinstance(m, FrozenLinear)} == {kept}
