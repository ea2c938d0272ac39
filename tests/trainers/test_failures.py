"""A process that dies is told of in a sentence; the others do not wait for it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback

from explora_geo import main
from explora_geo.datasets import FolderDataset
from explora_geo.trainers.failures import explain
from tests.trainers.ranks import start
from tests.trainers.steady_run import fit

CONFIG = 'tests/conf/pretrain_mae_folder.yaml'
QUICK = ['--trainer.enable_progress_bar=false', '--trainer.limit_val_batches=0', '--trainer.logger=false']


def test_a_killed_data_worker_is_told_of(
    tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = FolderDataset.__getitem__

    def killed(self: FolderDataset, index: int) -> Any:
        if torch.utils.data.get_worker_info() is not None and index == 9:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, index)

    monkeypatch.setattr(FolderDataset, '__getitem__', killed)
    data = [f'--data.root={tiles}', f'--data.val_root={tiles}', '--data.batch_size=4', '--data.num_workers=1']
    folder = f'--trainer.default_root_dir={tmp_path}'
    with pytest.raises(ChildProcessError, match=r'that loads data died .*(Killed|exited)') as caught:
        main.run(['fit', '--config', CONFIG, *data, *QUICK, folder])
    assert '\n' not in str(caught.value) and 'num_workers' in str(caught.value)


class Death(Callback):
    """Kills the second process in its third step."""

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def survive(folder: str) -> str | None:
    """Train until another process dies, and return what there is to say."""
    seed_everything(1, verbose=False)
    try:
        fit(Path(folder), 'dinov2', 8, callbacks=[Death()], devices=2, strategy='ddp')
    except RuntimeError as error:
        return explain(error)
    return None


@pytest.mark.slow
def test_a_killed_process_of_many_is_told_of(steady_folder: Path) -> None:
    processes = start(survive, steady_folder, str(steady_folder))
    before = time.monotonic()
    for process in processes:
        process.join(60)
    assert time.monotonic() - before < 60 and processes[1].exitcode == -signal.SIGKILL
    said = torch.load(steady_folder / '0.pt', weights_only=True)
    assert said.startswith('another process of this run died') and '\n' not in said


def test_other_errors_are_left_alone() -> None:
    assert explain(RuntimeError('mat1 and mat2 shapes cannot be multiplied')) is None
