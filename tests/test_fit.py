"""`fit --config`: every example runs, in our command line and in TorchGeo's, and mistakes are named."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor
from torchgeo.datasets import EuroSAT

from explora_geo.checkpoints import read_adapter
from explora_geo.cli import main
from explora_geo.configured import run
from explora_geo.trainers import CropLink

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / 'tests' / 'conf').glob('pretrain_*.yaml'))
FIRST = ROOT / 'tests' / 'conf' / 'pretrain_mae_folder.yaml'
Refuse = Callable[..., str]


def fit(*args: object) -> None:
    """Run our command line, which must succeed."""
    with pytest.raises(SystemExit) as stop:
        main(['fit', *map(str, args)])
    assert not stop.value.code


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples name the shipped tiles relative to the repository."""
    monkeypatch.chdir(ROOT)


@pytest.fixture
def torchgeo_eurosat(tmp_path: Path) -> Path:
    """Real tiles where TorchGeo expects them."""
    root = tmp_path / 'eurosat'
    tiles = sorted((ROOT / 'tests' / 'data' / 'eurosat_ms').glob('*/*_1?.tif'))[:16]
    for tile in tiles:
        folder = root / EuroSAT.base_dir / tile.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / tile.name).symlink_to(tile)
    for split in ('train', 'val', 'test'):
        (root / f'eurosat-{split}.txt').write_text('\n'.join(p.stem + '.jpg' for p in tiles))
    return root


@pytest.fixture
def small(
    base_file: Path, tmp_path: Path, tiles: Path, torchgeo_eurosat: Path, fmow: Path
) -> Callable[[Path], list[str]]:
    """Arguments that make an example small: a tiny base, two batches, few tiles, no files left behind."""

    def arguments(example: Path) -> list[str]:
        args = [
            f'--config={example}',
            f'--model.init_args.weights={base_file}',
            f'--trainer.default_root_dir={tmp_path / "run"}',
            '--trainer.limit_train_batches=2',
            '--trainer.limit_val_batches=2',  # 1 would be read as 1.0, which is all
            '--trainer.max_epochs=1',
            '--trainer.logger=false',
            '--trainer.enable_progress_bar=false',
            '--trainer.accelerator=cpu',
        ]
        if 'torchgeo' in example.name:
            args.append(f'--data.dict_kwargs.root={torchgeo_eurosat}')
        if 'temporal' in example.name:
            args += [f'--data.init_args.root={fmow}', '--data.init_args.batch_size=4']
        elif 'torchgeo' not in example.name:
            args.append('--data.init_args.batch_size=8')
        if example == FIRST:
            args += [f'--data.init_args.{name}={tiles}' for name in ('root', 'val_root')]
        return args

    return arguments


@pytest.mark.parametrize(
    ('command', 'example'),
    [
        *(pytest.param('explora_geo', example, id=f'explora_geo-{example.stem}') for example in EXAMPLES),
        *(
            pytest.param('torchgeo', e, id=f'torchgeo-{e.stem}', marks=[pytest.mark.slow] * (e != FIRST))
            for e in EXAMPLES
        ),
    ],
)
def test_every_example_runs_in_our_and_in_torchgeos_command_line(
    example: Path, command: str, small: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    if command == 'torchgeo':
        importlib.import_module('torchgeo.main').main(['fit', *small(example)])
    else:
        fit(*small(example))
    report = json.loads((tmp_path / 'run' / 'report.json').read_text())
    settings = yaml.safe_load(example.read_text())['model']['init_args']
    header, _ = read_adapter(tmp_path / 'run' / 'adapter.safetensors')
    assert report['steps'] in (1, 2) and header.backbone == settings['model']
    assert header.bands == tuple(settings.get('bands', ['red', 'green', 'blue']))
    assert header.tokenizer == settings.get('tokenizer', 'patch')


@pytest.mark.slow
def test_the_first_example_runs_as_it_is(tiles: Path, tmp_path: Path) -> None:
    fit(
        f'--config={FIRST}',
        f'--trainer.default_root_dir={tmp_path}',
        f'--trainer.logger.init_args.save_dir={tmp_path}',
        f'--data.init_args.root={tiles}',
        f'--data.init_args.val_root={tiles}',
        '--data.init_args.batch_size=8',
        '--trainer.enable_progress_bar=false',
    )
    report = json.loads(next(tmp_path.rglob('report.json')).read_text())
    assert '150 of 150 tensors matched' in report['load_report']
    assert 'decoder of 2 blocks, width 128' in report['load_report']


@pytest.fixture
def refuse(refuse: Refuse, small: Callable[[Path], list[str]]) -> Refuse:
    """Run the first example with changes that must fail, and return the one sentence printed."""
    return lambda *args: refuse('fit', *small(FIRST), *args)


@pytest.mark.parametrize(
    ('where', 'key'),
    [
        ('model.init_args', 'adaption'),
        ('model.init_args.optim', 'base_learning_rate'),
        ('data.init_args', 'image_sise'),
        ('trainer', 'max_epoch'),
        ('', 'models'),
    ],
)
def test_a_misspelt_key_is_named_in_one_sentence(
    refuse: Refuse, tmp_path: Path, where: str, key: str
) -> None:
    config: dict[str, Any] = yaml.safe_load(FIRST.read_text())
    section = config
    for part in filter(None, where.split('.')):
        section = section[part]
    section[key] = 1
    (tmp_path / 'wrong.yaml').write_text(yaml.safe_dump(config))
    sentence = refuse('--config', tmp_path / 'wrong.yaml')
    assert key in sentence and len(sentence) < 300


def test_a_class_that_does_not_exist_is_named(refuse: Refuse) -> None:
    assert 'ExPLoraTask' in refuse('--model.class_path=explora_geo.trainers.ExPLoraTask')


def test_an_empty_folder_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    sentence = refuse(f'--data.init_args.root={tmp_path / "empty"}')
    assert 'contains no images' in sentence and str(tmp_path / 'empty') in sentence


def test_a_missing_folder_is_refused(refuse: Refuse, tmp_path: Path) -> None:
    assert 'does not exist' in refuse(f'--data.init_args.root={tmp_path / "missing"}')


@pytest.mark.parametrize(
    ('args', 'sentence'),
    [
        (['--data.init_args.bands=[red,nir]'], 'nir'),
        (['--model.init_args.bands=[red,green,blue,nir]'], 'but the model expects (32, 4, 8, 8)'),
        (['--model.init_args.img_size=4', '--data.init_args.image_size=4'], 'img_size=4, patch_size=8'),
        (['--model.init_args.img_size=60', '--data.init_args.image_size=60'], 'img_size=60, patch_size=8'),
        (['--data.init_args.image_size=60'], 'multiples of the patch size 8, got 60x60'),
        (['--data.init_args.image_size=32'], 'built for 64x64 images, got 32x32'),
        (['--model.init_args.model=vit_small_patch8_64'], 'does not match a ViT of width 32 and 2 blocks'),
        (['--model.init_args.model=resnet50'], "unknown backbone 'resnet50'"),
        (['--model.init_args.patch_size=16'], 'but the model expects (32, 3, 16, 16)'),
        (['--model.init_args.adaptation=D-ExPLoRA-[0]'], 'cannot parse notation'),
        (['--model.init_args.adaptation=[9]-r4'], 'block 9 does not exist'),
        (['--model.init_args.weights=missing.pth'], 'weights file not found: missing.pth'),
        (['--model.init_args.weights=null'], 'needs pre-trained weights'),
        (['--model.init_args.optim.base_lr=-1'], 'base_lr must be positive'),
        (['--data.init_args.batch_size=0'], 'batch_size must be at least 1'),
        (['--ckpt_path=missing.ckpt'], 'missing.ckpt'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_a_wrong_value_is_refused_in_one_sentence(refuse: Refuse, args: list[str], sentence: str) -> None:
    assert sentence in refuse(*args)


def test_a_hostile_weights_file_is_refused_and_not_executed(refuse: Refuse, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / 'trap',)

    torch.save({'model': Hostile()}, tmp_path / 'hostile.pth')
    assert 'contains code' in refuse(f'--model.init_args.weights={tmp_path / "hostile.pth"}')
    assert not (tmp_path / 'trap').exists()


def test_resuming_with_other_base_weights_is_refused(
    refuse: Refuse, small: Callable[[Path], list[str]], base_state: dict[str, Tensor], tmp_path: Path
) -> None:
    fit(*small(FIRST))
    checkpoint = next((tmp_path / 'run').rglob('*.ckpt'))
    torch.save({**base_state, 'pos_embed': base_state['pos_embed'] + 1}, tmp_path / 'other.pth')
    other = f'--model.init_args.weights={tmp_path / "other.pth"}'
    sentence = refuse(other, '--trainer.max_epochs=2', f'--ckpt_path={checkpoint}')
    assert 'trained from different weights or with a different adaptation' in sentence


@pytest.mark.parametrize(
    ('example', 'given', 'steps'),
    [
        ('pretrain_mae_folder', [], float('inf')),
        ('pretrain_mae_folder', ['--trainer.num_sanity_val_steps=0'], 0),
        ('pretrain_mae_folder', ['--model.init_args.monitor_features=none'], 2),
        ('pretrain_dinov2_folder', [], float('inf')),
    ],
)
def test_the_command_line_links_crops_and_has_all_starting_features_scored(
    small: Callable[[Path], list[str]], example: str, given: list[str], steps: float
) -> None:
    args = [
        'fit',
        *small(ROOT / 'tests' / 'conf' / f'{example}.yaml'),
        '--trainer.fast_dev_run=false',
        *given,
    ]
    trainer: Any = run(args, start=False).trainer
    assert trainer.num_sanity_val_steps == steps
    assert any(isinstance(callback, CropLink) for callback in trainer.callbacks)
