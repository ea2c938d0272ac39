"""`--dry-run` of the commands that work long: they say what would be done, and do nothing."""

import os
from collections.abc import Callable
from pathlib import Path

import lightning.pytorch  # noqa: F401 - its log handler keeps the stream of whatever test imports it first
import pytest
import torch

ROOT = Path(__file__).parents[2]
NAIP = sorted((ROOT / 'tests/data/naip').glob('*.tif'))[0]
SOURCE = 'ViTTiny8_Weights.TINY_IMAGENET_MAE'
TRAIN = ROOT / 'tests/data/eurosat_rgb/train'


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / 'empty'
    folder.mkdir()
    (tmp_path / 'tests').symlink_to(ROOT / 'tests')
    monkeypatch.chdir(folder)
    return folder


def test_fit_shows_its_plan(run: Callable[..., str], empty: Path, tiles: Path) -> None:
    config = ROOT / 'tests/conf/pretrain_mae_folder.yaml'
    data = ['--data.root', tiles, '--data.val_root', tiles, '--data.batch_size', 4]
    long = ['--trainer.max_epochs', 3, '--trainer.accumulate_grad_batches', 2]
    printed = ' '.join(run('fit', '--config', config, *data, *long, '--dry-run').replace('│', '').split())
    assert 'M-ExPLoRA-[L]-r32' in printed and 'decoder of 2 blocks' in printed
    assert '6 batches of 4 per epoch, 24 validation images' in printed
    assert '9 optimizer steps of 8 images, 3 epochs' in printed
    assert os.listdir(empty) == []


def test_the_plan_of_a_run_by_steps_says_how_many_epochs_they_are(
    run: Callable[..., str], empty: Path, tiles: Path
) -> None:
    config = ROOT / 'tests/conf/tune_lora_eurosat.yaml'
    data = ['--data', 'FolderDataModule', '--data.root', tiles, '--data.batch_size', 4]
    long = ['--model.num_classes', 3, '--trainer.max_epochs', -1, '--trainer.max_steps', 9]
    part = ['--trainer.limit_train_batches', 0.5, '--data.image_size', 64]
    printed = ' '.join(
        run('fit', '--config', config, *data, *long, *part, '--dry-run').replace('│', '').split()
    )
    assert '3 batches of 4 per epoch, no validation images' in printed
    assert '9 optimizer steps of 4 images, 3 epochs' in printed and '[]-r8' in printed


@pytest.mark.slow
def test_the_plan_of_one_of_torchgeos_tasks_is_shown(
    run: Callable[..., str], empty: Path, tiles: Path
) -> None:
    task = ['--model', 'torchgeo.trainers.ClassificationTask', '--model.model', 'resnet18']
    size = ['--model.in_channels', 3, '--model.task', 'multiclass', '--model.num_classes', 3]
    data = ['--data', 'FolderDataModule', '--data.root', tiles, '--data.batch_size', 4]
    printed = run('fit', *task, *size, *data, '--trainer.max_epochs', 1, '--dry-run')
    assert 'ClassificationTask' in printed and '6 batches of 4' in ' '.join(printed.replace('│', '').split())


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
@pytest.mark.parametrize('wrong', ['--trainer.accelerator=gpu', '--trainer.val_check_interval=1.5'])
def test_what_lightning_refuses_is_one_sentence(
    refuse: Callable[..., str], empty: Path, tiles: Path, wrong: str
) -> None:
    config = ROOT / 'tests/conf/pretrain_mae_folder.yaml'
    assert refuse('fit', '--config', config, '--data.root', tiles, wrong, '--dry-run')


def test_fit_refuses_a_wrong_key_in_a_plan_too(refuse: Callable[..., str], empty: Path) -> None:
    config = ROOT / 'tests/conf/pretrain_mae_folder.yaml'
    assert 'unknown key' in refuse('fit', '--config', config, '--model.nothing', 1, '--dry-run')


@pytest.mark.parametrize(
    ('args', 'text'),
    [
        (['pack', TRAIN, 'out'], '2,000 tiles of (3, 64, 64), uint8, would take 24.6 MB'),
        (['pack', TRAIN, 'out', '--size', 32, '--bands', 'red'], '(1, 32, 32), uint8, would take 2.0 MB'),
        (
            ['probe', TRAIN.parent, '--weights', SOURCE, '--budgets', '5,all', '--seeds', 3],
            'train 1,800, val 200, test 1,000; each passes through the backbone once, then linear, logistic, '
            'knn on 4 label draws',
        ),
        (
            ['map', NAIP, '--weights', SOURCE, '--embeddings', 'e.tif', '--file-bands', 'red,green,blue,nir'],
            '256 x 256 pixels, bands red, green, blue; 1 blocks, 25 tiles of 64 px, at least 2 forward '
            'passes',
        ),
    ],
)
def test_dry_runs_say_how_much_there_is_to_do(
    run: Callable[..., str], empty: Path, args: list[object], text: str
) -> None:
    assert text in ' '.join(run(*args, '--dry-run').split())
    assert os.listdir(empty) == []


def test_a_loss_that_is_not_finite_ends_a_run_in_one_sentence(
    refuse: Callable[..., str], tiles: Path, tmp_path: Path
) -> None:
    config = ROOT / 'tests/conf/pretrain_mae_folder.yaml'
    data = ['--data.root', tiles, '--data.val_root', tiles, '--data.batch_size', 4]
    broken = ['--model.optim.base_lr', '1e30', '--trainer.max_epochs', 1, '--trainer.limit_val_batches', 0]
    logger = ['--trainer.logger', 'false', '--trainer.default_root_dir', tmp_path / 'run']
    message = refuse(
        'fit', '--config', config, *data, *broken, *logger, '--trainer.enable_progress_bar', 'false'
    )
    file = tmp_path / 'run' / 'batch_000001_rank_0.pt'
    assert 'the loss is not finite at step 1 on' in message and str(file) in message and file.is_file()
