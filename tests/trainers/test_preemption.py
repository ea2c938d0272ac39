"""A run that the system stops finishes its step, saves, leaves cleanly, and is queued again by Slurm."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.environments import SLURMEnvironment

from tests.trainers.ranks import START
from tests.trainers.steady_run import fit
from tests.trainers.test_resume import assert_equal, forget, weights

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
