"""What is drawn follows from the seed and the batch; runs that stop, or are stopped, go on exactly."""

import os
import random
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from explora_geo._compat import many_graphs
from explora_geo.adaptation.frozen import FrozenLinear
from explora_geo.datamodules import FolderDataModule
from explora_geo.trainers import ClassificationTask, ExPLoRATask
from explora_geo.trainers.resume import ReproducibleTask, seed_all
from tests.trainers.ranks import START
from tests.trainers.steady_run import fit


class Poison(Callback):
    """Makes one pixel of a batch infinite, and keeps that batch's names."""

    def __init__(self, batch: int = 3) -> None:
        self.batch = batch
        self.files: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, number: int) -> None:
        if trainer.fit_loop.total_batch_idx == self.batch:
            self.files = trainer.train_dataloader.names()  # type: ignore[union-attr]
            batch['image'][1, 0, 2, 2] = float('inf')
            for view in batch.get('views', ()):
                view[0, 0, 2, 2] = float('inf')


class Overflow(Callback):
    """Makes one weight infinite before the fourth step."""

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, number: int) -> None:
        if trainer.global_step == 3:
            with torch.no_grad():
                next(p for p in task.parameters() if p.requires_grad).view(-1)[0] = float('inf')


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


@pytest.mark.parametrize(('objective', 'accumulated'), [('mae', 1), ('dinov2', 1), ('mae', 2)])
def test_a_loss_that_is_not_finite_stops_before_it_does_harm(
    steady_folder: Path, objective: str, accumulated: int
) -> None:
    settings: dict[str, Any] = {'accumulate_grad_batches': accumulated}
    expected = weights(steady_folder, objective, 6, **settings)
    forget(steady_folder)
    poison, run = Poison(7 if accumulated == 2 else 3), steady_folder / 'run'
    with pytest.raises(ValueError, match='the loss is not finite at step 3') as caught:
        fit(steady_folder, objective, 6, every=None, callbacks=[poison], **settings)
    assert len(poison.files) == 4 and all(name in str(caught.value) for name in poison.files)
    kept = torch.load(run / 'batch_000003_rank_0.pt', weights_only=True)
    assert kept['files'] == poison.files and kept['step'] == 3
    assert torch.isinf(kept['batch']['image'][1, 0, 2, 2])
    good = run / 'last_good.ckpt'
    assert str(good) in str(caught.value) and '\n' not in str(caught.value)
    good.rename(run / 'last.ckpt')  # the run goes on without the bad pixel as if nothing had been
    assert_equal(weights(steady_folder, objective, 6, **settings), expected)


def test_tuning_stops_too(small_names: None, build_data: Any, build_trainer: Any) -> None:
    trainer = build_trainer(callbacks=[Poison()], max_epochs=3)
    task = ClassificationTask(num_classes=3, model='vit_tiny_patch8_32', tuning='full')
    with pytest.raises(ValueError, match=r'the loss is not finite at step 3 on .*\.jpg'):
        trainer.fit(task, datamodule=build_data())
    assert all(torch.isfinite(value).all() for value in task.state_dict().values())
    assert (Path(trainer.default_root_dir) / 'last_good.ckpt').is_file()


def test_weights_that_are_not_finite_are_not_called_good(steady_folder: Path) -> None:
    with pytest.raises(ValueError, match='the loss is not finite') as caught:
        fit(steady_folder, 'mae', 6, callbacks=[Overflow()])
    last = steady_folder / 'run' / 'last.ckpt'
    assert f'the weights are not finite either; resume from {last}' in str(caught.value)
    assert not (steady_folder / 'run' / 'last_good.ckpt').exists()
    state = torch.load(last, weights_only=True)['state_dict']
    assert all(torch.isfinite(value).all() for value in state.values())


class Ruined(Callback):
    """Makes one weight infinite after the fourth step, before its checkpoint is written."""

    def on_train_batch_end(self, trainer: Trainer, task: Any, *args: Any) -> None:
        if trainer.global_step == 4:
            next(p for p in task.parameters() if p.requires_grad).data.view(-1)[0] = float('inf')


def test_a_checkpoint_of_weights_that_are_not_finite_takes_no_other_place(steady_folder: Path) -> None:
    last = steady_folder / 'run' / 'last.ckpt'
    with pytest.raises(ValueError, match='the weights are not finite at step 4 and were not saved') as caught:
        fit(steady_folder, 'mae', 6, callbacks=[Ruined()])
    assert f'resume from {last}' in str(caught.value)
    assert torch.load(last, weights_only=True)['global_step'] == 3


@pytest.mark.parametrize('ends', ['well', 'early'])
def test_a_run_leaves_the_process_as_it_was(
    build_task: Callable[..., ExPLoRATask], build_trainer: Any, build_data: Any, ends: str
) -> None:
    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    task, data = build_task(compile_backbone=False), build_data()
    task.hparams['compile_backbone'] = True  # what limits it needs, without compiling
    seed_all(7)
    filters, limit, expected = list(warnings.filters), torch._dynamo.config.recompile_limit, draw()
    seed_all(7)
    if ends == 'well':
        trainer = build_trainer(max_steps=2)
        trainer.fit(task, datamodule=data)
        trainer.validate(task, datamodule=data)
    else:
        with pytest.raises(RuntimeError, match='stopped'):
            build_trainer(max_steps=2, callbacks=[Stopped(1)]).fit(task, datamodule=data)
    assert draw() == expected and torch.initial_seed() == 7
    assert warnings.filters == filters and torch._dynamo.config.recompile_limit == limit
    with many_graphs():
        assert torch._dynamo.config.recompile_limit >= 128


def test_a_seed_sets_all_random_states() -> None:
    drawn = []
    for _ in range(2):
        seed_all(4)
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(()))))
    assert drawn[0] == drawn[1]


def test_sharded_matrices_are_converted_at_every_use(
    build_task: Callable[..., ExPLoRATask], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = build_task()
    for strategy, kept in ((SingleDeviceStrategy(), True), (ModelParallelStrategy(1, 1), False)):
        monkeypatch.setattr(ExPLoRATask, 'trainer', SimpleNamespace(strategy=strategy, precision='32-true'))
        ReproducibleTask.setup(task, 'fit')
        assert {m.keeps_copy for m in task.modules() if isinstance(m, FrozenLinear)} == {kept}


SLURM = {
    'SLURM_NTASKS': '1',
    'SLURM_NTASKS_PER_NODE': '1',
    'SLURM_JOB_ID': '77',
    'SLURM_JOB_NAME': 'adapt',
    'SLURM_PROCID': '0',
    'SLURM_LOCALID': '0',
    'SLURM_NODEID': '0',
    'SLURM_NODELIST': '127.0.0.1',
}


class Signalled(Callback):
    """Sends this process a signal amid a step: after the gradients, before the optimizer."""

    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), self.number)


def terminated(folder: Path) -> None:
    fit(folder, 'dinov2', 9, every=None, callbacks=[Signalled(signal.SIGTERM, 4)])


@pytest.mark.slow
def test_a_terminated_run_saves_and_leaves_cleanly(steady_folder: Path) -> None:
    expected = weights(steady_folder, 'dinov2', 9)
    forget(steady_folder)
    process = START.Process(target=terminated, args=(steady_folder,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    file = steady_folder / 'run' / 'last.ckpt'
    assert torch.load(file, weights_only=True)['global_step'] == 5
    assert_equal(weights(steady_folder, 'dinov2', 9), expected)


def requeued(folder: Path) -> None:
    """A job of Slurm's, whose commands are those in the folder `bin`."""
    os.environ.update(SLURM, PATH=f'{folder / "bin"}:{os.environ["PATH"]}')
    fit(folder, 'mae', 9, every=None, callbacks=[Signalled(signal.SIGUSR1, 4)], plugins=[SLURMEnvironment()])


def resumed(folder: Path) -> None:
    """The same job when Slurm starts it again."""
    os.environ.update(SLURM)
    trained = fit(folder, 'mae', 9, every=None, plugins=[SLURMEnvironment()])
    torch.save(trained.state_dict(), folder / 'final.pt')


def test_slurm_queues_a_run_again_and_it_goes_on_exactly(steady_folder: Path) -> None:
    expected = weights(steady_folder, 'mae', 9, every=None)
    called = steady_folder / 'called'
    scontrol = steady_folder / 'bin' / 'scontrol'
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {called}\n')
    scontrol.chmod(0o755)
    for work in (requeued, resumed):
        process = START.Process(target=work, args=(steady_folder,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
    assert called.read_text() == 'requeue 77\n'
    saved = torch.load(steady_folder / 'run' / 'hpc_ckpt_1.ckpt', weights_only=True)
    assert saved['global_step'] == 5, 'the step in which the signal came is complete'
    assert_equal(torch.load(steady_folder / 'final.pt', weights_only=True), expected)
