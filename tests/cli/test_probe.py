"""`explora-geo probe`."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from explora_geo.adaptation import ExPLoRAConfig, explora
from explora_geo.checkpoints import load_weights, merge_adapter, save_adapter
from explora_geo.models import create_vit

SHORT = [
    '--epochs',
    1,
    '--iterations',
    20,
    '--few-iterations',
    5,
    '--seeds',
    2,
    '--model',
    'vit_tiny_patch8_32',
]


@pytest.fixture
def data(tiles: Path) -> Path:
    """Real tiles in train/ and test/."""
    folder = tiles.parent / 'data'
    for part, numbers in (('train', slice(0, 6)), ('test', slice(6, 8))):
        for source in tiles.iterdir():
            target = folder / part / source.name
            target.mkdir(parents=True)
            for path in sorted(source.glob('*.jpg'))[numbers]:
                shutil.copy(path, target)
    return folder


@pytest.fixture
def probe(run: Callable[..., str], base_file: Path, tmp_path: Path) -> Callable[..., str]:
    """Probe a tiny backbone shortly."""

    def call(*args: object) -> str:
        return run('probe', *args, *SHORT, '--out', tmp_path / 'out', '--cache', tmp_path / 'cache')

    return call


def test_a_folder_of_tiles_is_probed(
    probe: Callable[..., str], data: Path, base_file: Path, tmp_path: Path
) -> None:
    printed = probe(data, '--weights', base_file, '--budgets', '2,50%,all')
    report = json.loads((tmp_path / 'out' / 'probe.json').read_text())
    assert report['images'] == {'train': 16, 'val': 2, 'test': 6}
    assert len(report['scores']) == 9 and len(report['sweep']) == 28
    assert 'logistic' in printed and 'probe.json' in printed


def test_adapter_and_merged_file_give_the_same_features(
    probe: Callable[..., str], data: Path, base_file: Path, tmp_path: Path
) -> None:
    config = ExPLoRAConfig.parse('[L]-r4')
    vit = create_vit('vit_tiny_patch8_32')
    load_weights(vit, base_file)
    explora(vit, config)
    vit.blocks[0].attn.qkv.lora_b['q'].data += 0.5  # type: ignore[union-attr, operator, index]
    save_adapter(tmp_path / 'a.safetensors', vit, 'vit_tiny_patch8_32', config)
    merge_adapter(tmp_path / 'a.safetensors', base_file, tmp_path / 'm.safetensors')
    scores = []
    for weights in (
        [base_file, '--adapter', tmp_path / 'a.safetensors'],
        [tmp_path / 'm.safetensors'],
        [base_file],
    ):
        probe(data, '--methods', 'linear', '--weights', *weights)
        scores.append(json.loads((tmp_path / 'out' / 'probe.json').read_text())['sweep'])
    # Training, validation and test part of two different backbones.
    assert len(list((tmp_path / 'cache').iterdir())) == 3 * 2
    assert scores[0] == scores[1]


def test_features_are_averaged_over_turns(
    probe: Callable[..., str], data: Path, base_file: Path, tmp_path: Path
) -> None:
    probe(data, '--weights', base_file, '--methods', 'knn')
    probe(data, '--weights', base_file, '--methods', 'knn', '--turns', 4)
    assert json.loads((tmp_path / 'out' / 'probe.json').read_text())['turns'] == 4
    assert len(list((tmp_path / 'cache').iterdir())) == 3 * 2  # train, val, test


def test_a_yaml_file_names_any_data_module(
    probe: Callable[..., str], data: Path, base_file: Path, tmp_path: Path
) -> None:
    init = {'root': str(data), 'image_size': 32, 'val_split': 0.2}
    config = {'data': {'class_path': 'explora_geo.datamodules.EuroSATDataModule', 'init_args': init}}
    (tmp_path / 'data.yaml').write_text(yaml.safe_dump(config))
    probe(tmp_path / 'data.yaml', '--weights', base_file, '--methods', 'knn')
    report = json.loads((tmp_path / 'out' / 'probe.json').read_text())
    assert report['images'] == {'train': 14, 'val': 4, 'test': 6}


def test_mistakes_are_refused_in_one_sentence(
    refuse: Callable[..., str], data: Path, base_file: Path, tmp_path: Path
) -> None:
    def sentence(*args: object) -> str:
        return refuse('probe', *args, '--out', tmp_path / 'out', '--cache', tmp_path / 'cache')

    weights = ['--weights', base_file]
    name = ['--model', 'vit_tiny_patch8_32']
    assert 'does not specify its backbone' in sentence(data, *weights)
    assert 'val_split must be between 0 and 1' in sentence(data, *weights, *name, '--val-split', 0)
    assert 'label budget must be all, a share such as 1% or a number' in sentence(
        data, *weights, *name, '--budgets', 'few'
    )
    assert 'has no train or test folder' in sentence(data / 'train', *weights, *name)
    assert 'turns must be 1, 4' in sentence(data, *weights, *name, '--turns', 2)
    assert 'data not found' in sentence(data / 'missing', *weights, *name)
    assert "device 'abacus' is not available" in sentence(data, *weights, *name, '--device', 'abacus')
    wrong = {'root': str(data / 'train'), 'test_root': str(data / 'test'), 'bands': ['blue', 'green']}
    turned = {
        'class_path': 'explora_geo.datamodules.FolderDataModule',
        'init_args': {**wrong, 'image_size': 32},
    }
    (tmp_path / 'turned.yaml').write_text(json.dumps({'data': turned}))
    assert 'the model expects red, green, blue, the data contains blue, green' in sentence(
        tmp_path / 'turned.yaml', *weights, *name
    )
    (tmp_path / 'text.yaml').write_text('[1, 2]')
    assert 'must contain YAML keys and values, got list' in sentence(tmp_path / 'text.yaml', *weights, *name)
    for part in ('train', 'test'):
        for other in ('Forest', 'River'):
            shutil.rmtree(data / part / other)
    assert 'at least two classes' in sentence(data, *weights, *name)
