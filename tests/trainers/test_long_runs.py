"""Runs of many steps grow neither in memory, nor in open files, nor in what they log."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from explora_geo.trainers import GuardConfig
from tests.trainers.steady_run import build

STEPS, WARM = 20_000, 4_000


class Usage(Callback):
    """Looks at memory and open files now and then."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.memory: list[int] = []
        self.handles: list[int] = []
        self.objects: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step % self.every == 0:
            gc.collect()
            pages = int(Path('/proc/self/statm').read_text().split()[1])
            self.memory.append(pages * os.sysconf('SC_PAGE_SIZE'))
            self.handles.append(len(os.listdir('/proc/self/fd')))
            self.objects.append(len(gc.get_objects()))


@pytest.mark.group(name='long')
@pytest.mark.skipif(not Path('/proc/self/statm').exists(), reason='reads memory from /proc')
def test_twenty_thousand_steps_take_no_more_than_four_thousand(tmp_path: Path) -> None:
    samples = [{'image': torch.randn(3, 16, 16)} for _ in range(400)]
    usage = Usage(1000)
    task = build('mae', (8, 1, 1), guard=GuardConfig(every=500))
    trainer = Trainer(
        accelerator='cpu',
        max_steps=STEPS,
        logger=CSVLogger(tmp_path, flush_logs_every_n_steps=1000),
        log_every_n_steps=200,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        callbacks=[usage],
    )
    trainer.fit(task, DataLoader(samples, batch_size=1))
    assert trainer.global_step == STEPS
    warm = WARM // usage.every - 1
    memory, handles, objects = usage.memory[warm:], usage.handles[warm:], usage.objects[warm:]
    assert memory[-1] < 1.01 * memory[0], memory
    assert max(handles) == handles[0], handles
    assert objects[-1] < 1.01 * objects[0], objects
    logged = sum(f.stat().st_size for f in tmp_path.rglob('*') if f.is_file() and f.suffix != '.safetensors')
    assert logged < 200_000, 'a line every 200 steps and one an epoch'
