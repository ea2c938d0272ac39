"""`fit`, `test` and `predict` of the tuning examples."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from explora_geo.checkpoints import files, write_state
from explora_geo.cli import main
from explora_geo.models import create_vit
from explora_geo.trainers import load_task

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / 'tests' / 'conf').glob('tune_*.yaml'))


def call(*args: object) -> None:
    """Run our command line, which must succeed."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in args])
    assert not stop.value.code


@pytest.fixture
def small(
    small_names: None,
    base_state: dict[str, Tensor],
    tmp_path: Path,
    masks: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Path], list[str]]:
    """Arguments that make an example small: a tiny base, two batches, no files left behind."""
    monkeypatch.chdir(ROOT)
    base = tmp_path / 'base64.safetensors'
    write_state(base, create_vit('vit_tiny_patch8_64').state_dict(), {'backbone': 'vit_tiny_patch8_64'})

    def arguments(example: Path) -> list[str]:
        config = yaml.safe_load(example.read_text())
        args = [
            f'--config={example}',
            f'--trainer.default_root_dir={tmp_path / "run"}',
            '--trainer.limit_train_batches=2',
            '--trainer.limit_val_batches=2',  # 1 would be read as 1.0, which is all
            '--trainer.limit_test_batches=2',
            '--trainer.limit_predict_batches=2',
            '--trainer.max_epochs=1',
            '--trainer.logger=false',
            '--trainer.enable_progress_bar=false',
            '--trainer.enable_model_summary=false',
            '--trainer.accelerator=cpu',
        ]
        if 'weights' in config['model']['init_args']:
            args.append(f'--model.init_args.weights={base}')
        if config['data']['init_args']['root'].startswith('data/'):
            folder = (
                masks if 'data/masks' in config['data']['init_args']['root'] else masks.parent / 'numbers'
            )
            args += [f'--data.init_args.root={folder}', f'--data.init_args.test_root={folder}']
        return args

    return arguments


@pytest.mark.parametrize('example', EXAMPLES, ids=lambda p: p.stem)
def test_every_example_is_tuned_tested_and_predicts(
    example: Path, small: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    call('fit', *small(example))
    checkpoint = next((tmp_path / 'run').rglob('*.ckpt'))
    config = yaml.safe_load(example.read_text())
    if 'test_root' in ' '.join(small(example)) or 'EuroSATDataModule' in config['data']['class_path']:
        call('test', *small(example), f'--ckpt_path={checkpoint}')
        report = json.loads((tmp_path / 'run' / 'report.json').read_text())
        assert 'test_loss' in report['test'] and report['steps'] in (1, 2)
    call('predict', *small(example), f'--ckpt_path={checkpoint}', '--return_predictions=false')
    task = load_task(tmp_path / 'run' / 'model.safetensors')
    assert type(task).__name__ == config['model']['class_path'].rpartition('.')[2]
    assert task.data['mean'] and task.data['bands']


@pytest.mark.parametrize('example', EXAMPLES[:1], ids=lambda p: p.stem)
def test_torchgeos_command_line_takes_the_same_file(
    example: Path, small: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    importlib.import_module('torchgeo.main').main(['fit', *small(example)])
    assert (tmp_path / 'run' / 'model.safetensors').is_file()


@pytest.mark.parametrize(
    ('args', 'sentence'),
    [
        (['--model.init_args.num_classes=2'], 'num_classes is 2, but the data has 10 classes (AnnualCrop'),
        (['--model.init_args.tuning=half'], 'Parser key "tuning":'),
        (['--model.init_args.weights=missing.pth'], 'weights file not found: missing.pth'),
        (['--model.init_args.regularization.mixup=-1'], 'mixup must not be negative'),
        (
            ['--data.init_args.bands=[red,green]'],
            "bands ['blue'] are missing: the model expects red, green, blue, the data contains red, green",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_mistakes_end_in_one_sentence(
    small: Callable[[Path], list[str]], capsys: pytest.CaptureFixture[str], args: list[str], sentence: str
) -> None:
    example = ROOT / 'tests' / 'conf' / 'tune_lora_eurosat.yaml'
    with pytest.raises(SystemExit) as stop:
        main(['fit', *small(example), *args])
    printed = capsys.readouterr()
    assert stop.value.code == 2 and 'Traceback' not in printed.err
    assert sentence in printed.err and len(printed.err.strip().splitlines()[-1]) < 400


def test_a_full_disk_ends_in_one_sentence(
    small: Callable[[Path], list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = small(EXAMPLES[-1])

    def disk_full(*args: object, **kwargs: object) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(files, 'save_file', disk_full)
    with pytest.raises(SystemExit) as stop:
        main(['fit', *arguments])
    assert stop.value.code == 2 and 'error: no space left to write' in capsys.readouterr().err
