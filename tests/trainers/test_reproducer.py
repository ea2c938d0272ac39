"""A loss that is no number stops the run in its step, by name, and can be repeated from a file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from explora_geo.trainers import ClassificationTask, ExPLoRATask
from explora_geo.trainers.reproducer import _precision, replay, write_reproducer
from tests.trainers.steady_run import build, fit


class Poison(Callback):
    """Makes one pixel of the fourth batch infinite, and keeps that batch's names."""

    def __init__(self) -> None:
        self.files: list[str] = []

    def on_train_batch_start(self, trainer: Trainer, task: LightningModule, batch: Any, number: int) -> None:
        if trainer.global_step == 3:
            self.files = trainer.train_dataloader.names()  # type: ignore[union-attr]
            batch['image'][1, 0, 2, 2] = float('inf')


@pytest.fixture
def stopped(steady_folder: Path) -> tuple[Path, str, list[str]]:
    """A run that met an infinite pixel: its file, message and the batch's names."""
    poison = Poison()
    with pytest.raises(ValueError, match='the loss is nan at step 3') as caught:
        fit(steady_folder, 'mae', 9, callbacks=[poison])
    return steady_folder / 'run' / 'step_000003_rank_0.pt', str(caught.value), poison.files


def test_the_run_stops_in_the_step_and_names_the_files(stopped: tuple[Path, str, list[str]]) -> None:
    file, message, files = stopped
    assert len(files) == 4 and all(Path(name).is_file() and name in message for name in files)
    assert str(file) in message and '\n' not in message
    content = torch.load(file, weights_only=True)
    assert content['files'] == files and content['step'] == 3
    assert torch.isinf(content['batch']['image'][1, 0, 2, 2])


def test_the_file_repeats_the_step(stopped: tuple[Path, str, list[str]], tmp_path: Path) -> None:
    file = stopped[0]
    assert torch.isnan(replay(build('mae'), file)['loss_mae'])
    content = torch.load(file, weights_only=True)
    content['batch']['image'][1, 0, 2, 2] = 0
    torch.save(content, tmp_path / 'mended.pt')
    assert torch.isfinite(replay(build('mae'), tmp_path / 'mended.pt')['loss_mae'])


@pytest.mark.parametrize('precision', ['32-true', 'bf16-mixed'])
@pytest.mark.parametrize('objective', ['mae', 'dinov2'])
def test_a_step_is_repeated_bit_for_bit(
    steady_folder: Path, monkeypatch: pytest.MonkeyPatch, objective: str, precision: str
) -> None:
    seen: list[Tensor] = []
    files: list[Path] = []

    def check(task: ExPLoRATask, loss: Tensor, batch: Any) -> None:
        if task.global_step == 2:
            seen.append(loss.detach())
            files.append(write_reproducer(task, batch, task._drawn)[1])

    monkeypatch.setattr(ExPLoRATask, 'check_finite', check)
    fit(steady_folder, objective, 4, precision=precision)
    losses = replay(build(objective), files[0])
    assert torch.equal(torch.stack(list(losses.values())).sum(), seen[0])


def test_other_precisions_are_repeated_as_they_were(steady_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match='the loss is nan at step 3'):
        fit(steady_folder, 'mae', 9, callbacks=[Poison()])
    content = torch.load(steady_folder / 'run' / 'step_000003_rank_0.pt', weights_only=True)
    content['batch']['image'][1, 0, 2, 2] = 0
    losses = {}
    for precision in ('32-true', 'bf16-true', '16-mixed'):
        content['precision'] = precision
        torch.save(content, tmp_path / 'step.pt')
        losses[precision] = replay(build('mae'), tmp_path / 'step.pt')['loss_mae'].float()
    assert losses['bf16-true'] != losses['32-true'] != losses['16-mixed'] != losses['bf16-true']
    for loss in losses.values():
        torch.testing.assert_close(loss, losses['32-true'], rtol=0.05, atol=0)
    content['batch']['image'] *= 1e6  # too large for 16 bits, not for bfloat16
    torch.save(content, tmp_path / 'step.pt')
    assert torch.isnan(replay(build('mae'), tmp_path / 'step.pt')['loss_mae'])


@pytest.mark.parametrize(('name', 'dtype'), [('16-mixed', torch.float16), ('bf16-mixed', torch.bfloat16)])
def test_autocast_is_that_of_the_device(name: str, dtype: torch.dtype) -> None:
    with _precision(name, 'cpu').train_step_context():
        assert torch.is_autocast_enabled('cpu') and torch.get_autocast_dtype('cpu') == dtype
    on_a_gpu = _precision(name, 'cuda')
    assert isinstance(on_a_gpu, MixedPrecision) and (on_a_gpu.precision, on_a_gpu.device) == (name, 'cuda')


def test_a_tuning_run_leaves_one_too(small_names: None, build_data: Any, build_trainer: Any) -> None:
    def make() -> ClassificationTask:
        return ClassificationTask(num_classes=3, model='vit_tiny_patch8_32', tuning='full')

    trainer = build_trainer(callbacks=[Poison()], max_epochs=3)
    with pytest.raises(ValueError, match=r'the loss is nan at step 3 on .*\.jpg'):
        trainer.fit(make(), datamodule=build_data())
    file = Path(trainer.default_root_dir) / 'step_000003_rank_0.pt'
    assert torch.isnan(replay(make(), file)['loss'])


@pytest.mark.parametrize('content', [None, {'model': 1}])
def test_files_of_no_step_are_refused(tmp_path: Path, content: Any) -> None:
    if content is None:
        with pytest.raises(FileNotFoundError, match=r'no file .*lost\.pt'):
            replay(build('mae'), tmp_path / 'lost.pt')
    else:
        torch.save(content, tmp_path / 'other.pt')
        with pytest.raises(ValueError, match=r'other\.pt holds no step of a run'):
            replay(build('mae'), tmp_path / 'other.pt')
