"""Files and folders that may not be read are named, by every command."""

from collections.abc import Callable
from pathlib import Path

import pytest

from explora_geo.checkpoints import write_state
from explora_geo.datasets import FolderDataset
from explora_geo.models import create_vit
from explora_geo.trainers import load_task
from tests.data.broken.data import raster
from tests.permissions import forbidden

Refuse = Callable[..., str]
Run = Callable[..., str]
pytestmark = pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning')

CONF = Path(__file__).parents[1] / 'conf'
MODEL = 'vit_tiny_patch8_32'


def test_a_tile_that_may_not_be_read_is_skipped_and_named(run: Run, tiles: Path, tmp_path: Path) -> None:
    path = sorted((tiles / 'River').iterdir())[0]
    with forbidden(path):
        with pytest.raises(PermissionError):
            path.read_bytes()
        dataset = FolderDataset(tiles)
        named = [s['skipped'] for s in (dataset[i] for i in range(len(dataset))) if 'skipped' in s]
        assert len(named) == 1 and named[0].startswith(f'{path}: cannot be read') and 'denied' in named[0]
        strict = FolderDataset(tiles, strict=True)
        with pytest.raises(ValueError, match=rf'{path.name}: cannot be read .*strict=False'):
            strict[strict.files.index(path)]
        assert '1 skipped' in run('pack', tiles, tmp_path / 'pack')


@pytest.mark.parametrize(
    ('place', 'mode'), [('.', 0o000), ('.', 0o111), ('River', 0o000), ('River', 0o111), ('..', 0o000)]
)
def test_a_folder_that_may_not_be_read_is_refused_by_name(
    refuse: Refuse, tiles: Path, tmp_path: Path, base_file: Path, place: str, mode: int
) -> None:
    (root := tmp_path / 'parent' / 'tiles').parent.mkdir()
    tiles.rename(root)
    folder = (root / place).resolve()
    weights = ('--weights', base_file, '--model', MODEL)
    commands = (
        ('pack', root, tmp_path / 'pack'),
        ('probe', root, *weights),
        ('adapt', root, '--weights', 'ViTTiny8_Weights.TINY_IMAGENET_MAE', '--out', tmp_path / 'run'),
        (
            *('fit', '--config', CONF / 'pretrain_mae_folder.yaml', '--data.init_args.root', root),
            *('--model.init_args.weights', base_file, '--model.init_args.model', MODEL),
            *('--trainer.default_root_dir', tmp_path, '--trainer.logger', 'false'),
        ),
    )
    with forbidden(folder, mode):
        for command in commands:
            sentence = refuse(*command)
            assert str(folder) in sentence or str(root) in sentence, command[0]


def test_tiles_of_a_folder_that_may_only_be_listed(refuse: Refuse, tiles: Path, tmp_path: Path) -> None:
    with forbidden(tiles / 'River', 0o444):
        dataset = FolderDataset(tiles)
        found = [dataset[i] for i in range(len(dataset))]
        assert sum('image' in sample for sample in found) == 16
        assert sum('River_' in sample.get('skipped', '') for sample in found) == 8
        assert str(tiles / 'River') in refuse('pack', tiles / 'River', tmp_path / 'pack')


@pytest.mark.parametrize('suffix', ['.safetensors', '.pth', '.ckpt'])
def test_weights_and_models_that_may_not_be_read(
    small_names: None, refuse: Refuse, tmp_path: Path, suffix: str
) -> None:
    path, scene = tmp_path / f'model{suffix}', tmp_path / 'scene.tif'
    write_state(path, create_vit(MODEL).state_dict(), {})
    raster(scene)
    with forbidden(path):
        with pytest.raises(ValueError, match=rf'{path.name} .*denied'):
            load_task(path)
        for command in (
            ('weights', 'inspect', path),
            ('adapter', 'info', path),
            ('export', tmp_path / 'out.safetensors', '--weights', path),
            ('map', scene, '--model', path, '--out', tmp_path / 'map.tif'),
        ):
            sentence = refuse(*command)
            assert str(path) in sentence and 'denied' in sentence, command[0]


def test_a_scene_that_may_not_be_read(small_names: None, refuse: Refuse, tmp_path: Path) -> None:
    write_state(tmp_path / 'base.safetensors', create_vit(MODEL).state_dict(), {'backbone': MODEL})
    scene = raster(tmp_path / 'scene.tif')
    with forbidden(scene):
        sentence = refuse(
            'map', scene, '--weights', tmp_path / 'base.safetensors', '--out', tmp_path / 'map.tif'
        )
    assert str(scene) in sentence and 'ermission denied' in sentence
