"""What a run leaves behind, and checkpoints that are whole even where there is no room."""

import errno
import json
import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins import AsyncCheckpointIO
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from explora_geo import _atomic
from explora_geo.checkpoints import load_backbone
from explora_geo.datamodules import FolderDataModule
from explora_geo.objectives import MAE
from explora_geo.trainers import ExPLoRATask, artifacts
from explora_geo.trainers.artifacts import AtomicCheckpointIO, run_folder
from tests.trainers.steady_run import fit

Task = Callable[..., ExPLoRATask]
Data = Callable[..., FolderDataModule]
Run = Callable[..., Trainer]


class PictureLogger(Logger):
    """A logger with TensorBoard's method for pictures."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.pictures: list[tuple[str, Tensor, int]] = []

    name, version = 'pictures', 0
    experiment = property(lambda self: self)
    save_dir = property(lambda self: str(self.folder))

    def add_image(self, tag: str, image: Tensor, step: int) -> None:
        self.pictures.append((tag, image, step))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass


def report_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / 'report.json').read_text())


@torch.no_grad()
def test_a_run_leaves_a_report_and_an_adapter_that_is_the_trained_model(
    build_task: Task, build_data: Data, build_trainer: Run, base_file: Path, images: Tensor, tmp_path: Path
) -> None:
    task = build_task()
    with torch.enable_grad():
        build_trainer(max_epochs=2).fit(task, datamodule=build_data())
    report = report_of(tmp_path / 'run')
    assert (report['backbone'], report['adaptation']) == ('vit_tiny_patch8_32', 'M-ExPLoRA-[L]-r4')
    assert report['steps'] == 6 and [row['epoch'] for row in report['history']] == [0, 1]
    assert sum(report['trainable'].values()) == sum(
        p.numel() for p in task.backbone.parameters() if p.requires_grad
    )
    assert report['starting_score'] == task.features.starting
    assert 'val_knn_gain' in report['history'][-1]
    assert report['skipped_files'] == {'count': 0, 'files': {}}
    assert str(base_file) in report['load_report'] and report['seconds'] > 0
    vit = load_backbone('vit_tiny_patch8_32', base_file, tmp_path / 'run' / report['weights'])
    trained = task.backbone.eval()
    torch.testing.assert_close(vit(images).cls, trained(images).cls, atol=1e-5, rtol=0)


def test_full_pre_training_leaves_a_model_file_that_starts_the_next_run(
    build_task: Task, build_data: Data, build_trainer: Run, tmp_path: Path
) -> None:
    objective = partial(MAE, decoder_embed_dim=64, decoder_depth=2)
    first = build_task(weights=None, adaptation='full', objective=objective)
    build_trainer().fit(first, datamodule=build_data())
    file = tmp_path / 'run' / 'model.safetensors'
    assert report_of(tmp_path / 'run')['weights'] == file.name
    second = build_task(weights=str(file), objective=None)
    assert 'decoder of 2 blocks, width 64, loaded' in second.load_report
    assert torch.equal(second.backbone.pos_embed, first.backbone.pos_embed)
    with pytest.raises(ValueError, match='was trained on bands red, green, blue'):
        build_task(weights=str(file), bands=('blue', 'green', 'red'))


@pytest.fixture
def corrupt(tiles: Path) -> Path:
    """One of the 24 tiles is cut off."""
    tile = sorted((tiles / 'River').glob('*.jpg'))[2]
    tile.write_bytes(tile.read_bytes()[:300])
    return tile


def test_a_corrupt_tile_is_skipped_counted_and_named(
    build_task: Task, build_data: Data, build_trainer: Run, corrupt: Path, tmp_path: Path
) -> None:
    build_trainer(max_epochs=2).fit(build_task(), datamodule=build_data())
    skipped = report_of(tmp_path / 'run')['skipped_files']
    assert skipped['count'] == 1 and list(skipped['files']) == [str(corrupt)]
    assert 'cannot be read' in skipped['files'][str(corrupt)]


def test_a_corrupt_tile_stops_a_strict_run(
    build_task: Task, build_data: Data, build_trainer: Run, corrupt: Path
) -> None:
    with pytest.raises(ValueError, match=corrupt.name):
        build_trainer().fit(build_task(), datamodule=build_data(strict=True))


def test_pictures_reach_a_logger_that_takes_them(
    build_task: Task, build_data: Data, build_trainer: Run, tmp_path: Path
) -> None:
    logger = PictureLogger(tmp_path / 'log')
    build_trainer(logger=logger).fit(build_task(), datamodule=build_data())
    tags = [(tag, step) for tag, _, step in logger.pictures]
    assert {('masked', 3), ('reconstruction', 3)} <= set(tags)
    for _, picture, _ in logger.pictures:
        assert picture.shape == (3, 2 * 32, 8 * 32)
        assert 0 <= picture.min() and picture.max() <= 1
    assert (tmp_path / 'log' / 'report.json').exists() and not (tmp_path / 'log' / 'pictures').exists()


def test_pictures_reach_tensorboard_and_become_files_with_other_loggers(
    build_task: Task, build_data: Data, build_trainer: Run, tmp_path: Path
) -> None:
    board, table = TensorBoardLogger(tmp_path / 'board'), CSVLogger(tmp_path / 'table')
    for logger in (board, table):
        build_trainer(logger=logger).fit(build_task(), datamodule=build_data())
    events = EventAccumulator(board.log_dir).Reload()
    assert {'masked', 'reconstruction'} <= set(events.Tags()['images'])
    folder = Path(table.log_dir) / 'pictures'
    assert {'masked_000003.png', 'reconstruction_000003.png'} <= {p.name for p in folder.iterdir()}
    with Image.open(folder / 'masked_000003.png') as image:
        assert image.size == (8 * 32, 2 * 32)


@pytest.mark.parametrize(
    ('bands', 'shown'),
    [
        (('B02', 'B03', 'B04'), [2, 1, 0]),
        (('red', 'green', 'blue'), [0, 1, 2]),
        (('b11', 'b12', 'vv'), [0] * 3),
    ],
)
def test_pictures_are_drawn_in_true_color(
    build_task: Task, build_data: Data, build_trainer: Run, tmp_path: Path, bands: Any, shown: list[int]
) -> None:
    logger = PictureLogger(tmp_path / 'log')
    data = build_data(file_bands=bands)
    task = build_task(bands=bands, weights=None, adaptation='full', monitor_features='none')
    build_trainer(logger=logger, limit_train_batches=1, num_sanity_val_steps=0).fit(task, datamodule=data)
    picture = logger.pictures[-1][1][:, :32, :32]
    batch = data.aug(next(iter(data.val_dataloader())))['image'][:, shown]
    low, high = batch.amin(), batch.amax()
    torch.testing.assert_close(picture, (batch[0] - low) / (high - low))


def test_a_trial_run_leaves_nothing(
    build_task: Task, build_data: Data, build_trainer: Run, tmp_path: Path
) -> None:
    build_trainer(fast_dev_run=True).fit(build_task(), datamodule=build_data())
    assert not (tmp_path / 'run').exists()


def test_a_failing_write_of_the_adapter_is_not_silent(
    build_task: Task, build_data: Data, build_trainer: Run, fail_to_write: Callable[[], None], tmp_path: Path
) -> None:
    fail_to_write()
    with pytest.raises(OSError, match='No space left'):
        build_trainer().fit(build_task(), datamodule=build_data())
    assert not list((tmp_path / 'run').glob('*adapter*'))


@pytest.mark.parametrize('logged', [True, False])
def test_the_folder_of_a_run_is_lightnings_but_for_the_wait(
    logged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = CSVLogger(tmp_path, name='runs', version='one') if logged else False
    trainer = Trainer(default_root_dir=tmp_path, logger=logger, accelerator='cpu', enable_progress_bar=False)
    expected = trainer.log_dir
    assert expected is not None

    def stall(found: object, src: int = 0) -> object:
        raise AssertionError('the first process alone waits for ever')

    monkeypatch.setattr(trainer.strategy, 'broadcast', stall)
    assert run_folder(trainer) == Path(expected)
    assert run_folder(trainer) == (tmp_path / 'runs' / 'one' if logged else tmp_path)


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
    with pytest.raises(OSError, match=f'no space left to write {file}: .*the existing file is unchanged'):
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
        with pytest.raises(
            OSError, match=r'last\.ckpt: 300,000 more bytes are needed \(100,000 bytes free\)'
        ):
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
