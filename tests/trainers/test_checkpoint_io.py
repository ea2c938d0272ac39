"""A checkpoint that finds no room stops the run, and the one before is whole."""

import errno
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import AsyncCheckpointIO

from explora_geo import _atomic
from explora_geo.trainers import artifacts
from explora_geo.trainers.artifacts import AtomicCheckpointIO
from tests.trainers.steady_run import fit


def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint_of_before(
    steady_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = artifacts.save

    def full(content: Any, path: Path) -> None:
        save(content, path)
        if content['global_step'] == 3:
            os.truncate(path, 1000)
            raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(artifacts, 'save', full)
    file = steady_folder / 'run' / 'last.ckpt'
    with pytest.raises(OSError, match=f'no space left to write {file}: .*the file of before is as it was'):
        fit(steady_folder, 'mae', 6)
    assert torch.load(file, weights_only=True)['global_step'] == 2
    assert [name for name in os.listdir(file.parent) if name.startswith('.')] == []
    monkeypatch.undo()
    assert fit(steady_folder, 'mae', 6).trainer.global_step == 6


def test_torch_says_nothing_of_a_full_disk_and_we_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / 'last.ckpt'
    plugin = AtomicCheckpointIO()
    plugin.save_checkpoint({'a': torch.ones(10)}, file)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(_atomic, '_room', lambda temporary: 100_000)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(OSError, match=r'last\.ckpt: 300,000 bytes are missing, 100,000 are free'):
            plugin.save_checkpoint({'a': torch.ones(100_000)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert torch.equal(plugin.load_checkpoint(file)['a'], torch.ones(10))


def test_what_a_killed_save_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / '.last.ckpt.abc').write_bytes(b'half')
    AtomicCheckpointIO().save_checkpoint({'a': 1}, tmp_path / 'last.ckpt')
    assert os.listdir(tmp_path) == ['last.ckpt']


def test_another_way_of_writing_is_left_in_place(
    build_task: Callable[..., Any], build_trainer: Callable[..., Trainer], build_data: Callable[..., Any]
) -> None:
    for plugins, kind in (([], AtomicCheckpointIO), ([AsyncCheckpointIO()], AsyncCheckpointIO)):
        trainer = build_trainer(plugins=plugins, fast_dev_run=True)
        trainer.fit(build_task(), datamodule=build_data())
        assert type(trainer.strategy.checkpoint_io) is kind
