"""Archives with broken files through every command: finished, with the files named, or one sentence."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import from_origin

from explora_geo.datamodules import SceneDataModule
from explora_geo.datasets import FolderDataset, PackedDataset
from explora_geo.datasets.packed import CHECKS, HEADER, PIXELS, REASONS, STATES, pack
from explora_geo.maps import outputs as parts
from explora_geo.trainers import SegmentationTask, save_task
from tests.data.broken.data import BROKEN, add, cut, pixels, raster

Refuse = Callable[..., str]
Run = Callable[..., str]
CONF = Path(__file__).parents[1] / 'conf'
#: One of each kind of damage: the data sets' tests have all files.
KINDS = ('jpeg cut short', 'text as tiff', 'enormous png', 'nan', '16 bits', 'link to itself')
#: Ways in which there is nothing at all.
EMPTY = ('none', 'missing', 'file')
FUZZING = pytest.mark.group(name='fuzzing')

pytestmark = [
    pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning'),
    pytest.mark.filterwarnings('ignore:Skipping a batch of:UserWarning'),
]


def spoil(folder: Path, kinds: tuple[str, ...] = KINDS) -> set[str]:
    """Put broken files of several kinds into a folder, and return their names."""
    names = set()
    for number, kind in enumerate(kinds):
        path = add(folder, kind)
        names.add(path.rename(folder / f'{number} ä.{path.name[2:]}').name)
    return names


def only_broken(folder: Path) -> Path:
    folder.mkdir()
    spoil(folder)
    return folder


@pytest.fixture
def fit(base_file: Path, tmp_path: Path) -> list[object]:
    """Pre-train a tiny model for an epoch; the data are to be added."""
    return [
        *('fit', '--config', CONF / 'pretrain_mae_folder.yaml', '--model.init_args.weights', base_file),
        *('--model.init_args.model', 'vit_tiny_patch8_32', '--data.init_args.image_size', 32),
        *('--data.init_args.val_root', 'null', '--trainer.enable_progress_bar', 'false'),
        *('--trainer.enable_model_summary', 'false', '--trainer.accelerator', 'cpu'),
        *(
            '--trainer.default_root_dir',
            tmp_path / 'run',
            '--trainer.logger.init_args.save_dir',
            tmp_path / 'run',
        ),
    ]


@pytest.mark.parametrize('batch_size', [pytest.param(1, marks=FUZZING), 4])
def test_training_and_validation_go_on_without_the_broken_files(
    run: Run, fit: list[object], tiles: Path, tmp_path: Path, batch_size: int
) -> None:
    names = spoil(tiles / 'River')
    validation = tmp_path / 'validation'
    shutil.copytree(tiles, validation, symlinks=True)
    run(
        *fit,
        *('--data.init_args.root', tiles, '--data.init_args.batch_size', batch_size),
        *('--data.init_args.val_root', validation, '--trainer.limit_train_batches', 30 // batch_size),
    )
    (report,) = (tmp_path / 'run').rglob('report.json')
    found = json.loads(report.read_text())['skipped_files']
    # The last incomplete batch of an epoch is dropped in training.
    assert {Path(path).name for path in found['files']} <= names and found['count'] >= len(names) - 2
    assert list((tmp_path / 'run').rglob('adapter.safetensors'))


@pytest.mark.parametrize('kind', ['broken', *(pytest.param(k, marks=FUZZING) for k in EMPTY)])
def test_an_archive_without_a_usable_image(
    refuse: Refuse, fit: list[object], base_file: Path, tmp_path: Path, kind: str
) -> None:
    root = tmp_path / 'root'
    if kind == 'none':
        root.mkdir()
    elif kind == 'broken':
        only_broken(root)
    elif kind == 'file':
        root.write_bytes(b'')
    sentence = refuse(*fit, '--data.init_args.root', root)
    assert str(root) in sentence
    assert str(root) in refuse('pack', root, tmp_path / 'pack')
    assert str(root) in refuse('probe', root, '--weights', base_file, '--model', 'vit_tiny_patch8_32')
    weights = 'ViTTiny8_Weights.TINY_IMAGENET_MAE'
    assert str(root) in refuse('adapt', root, '--weights', weights, '--out', tmp_path / 'adapted')


def test_an_archive_of_one_image(run: Run, fit: list[object], tiles: Path, tmp_path: Path) -> None:
    root = tmp_path / 'one'
    root.mkdir()
    shutil.copy(next((tiles / 'River').iterdir()), root / 'das einzige Bild.jpg')
    run(*fit, '--data.init_args.root', root)
    assert list((tmp_path / 'run').rglob('adapter.safetensors'))
    assert '1 tiles' in run('pack', root, tmp_path / 'pack')


def test_a_probe_names_what_it_left_out(run: Run, tiles: Path, base_file: Path, tmp_path: Path) -> None:
    data = tmp_path / 'data'
    for part in ('train', 'test'):
        shutil.copytree(tiles, data / part)
    names = spoil(data / 'train' / 'River') | spoil(data / 'test' / 'River')
    run(
        *('probe', data, '--weights', base_file, '--model', 'vit_tiny_patch8_32', '--methods', 'knn'),
        *('--batch-size', 2, '--cache', tmp_path / 'cache', '--out', tmp_path / 'out'),
    )
    report = json.loads((tmp_path / 'out' / 'probe.json').read_text())
    assert report['images']['test'] == 24 and report['images']['train'] + report['images']['val'] == 24
    assert {Path(text.split(': ')[0]).name for text in report['skipped']} == names


def test_a_pack_names_what_it_left_out(run: Run, tiles: Path, tmp_path: Path) -> None:
    spoil(tiles / 'River')
    assert '24 tiles of (3, 64, 64), uint8, ' not in (printed := run('pack', tiles, tmp_path / 'pack'))
    assert f'{len(KINDS)} skipped' in printed


@pytest.mark.parametrize('damage', ['cut', 'empty', 'gone'])
@pytest.mark.parametrize('part', [HEADER, PIXELS, STATES, CHECKS, REASONS])
def test_a_damaged_pack_is_named(tiles: Path, tmp_path: Path, part: str, damage: str) -> None:
    out = tmp_path / 'pack'
    list(pack(FolderDataset(tiles), out))
    file = out / part
    if damage == 'gone':
        file.unlink()
    elif damage == 'empty':
        file.write_bytes(b'')
    else:
        cut(file)
    with pytest.raises((ValueError, FileNotFoundError), match=str(out)):
        PackedDataset(out)
    if (part, damage) != (HEADER, 'gone'):  # then it is no pack, and is made anew
        with pytest.raises((ValueError, FileNotFoundError), match=str(out)):
            list(pack(FolderDataset(tiles), out))


@pytest.fixture
def model(small_names: None, tmp_path: Path) -> Path:
    """A tuned model of red, green and blue that learnt nothing."""
    task = SegmentationTask(model='vit_tiny_patch8_32', tuning='full', num_classes=2, head='linear')
    task.data = {'mean': [100.0] * 3, 'std': [40.0] * 3}
    save_task(tmp_path / 'model.safetensors', task.eval())
    return tmp_path / 'model.safetensors'


def scene(path: Path, values: np.ndarray, **kwargs: object) -> Path:
    place = {'crs': 'EPSG:32631', 'transform': from_origin(500000, 5000000, 10, 10)}
    return raster(path, values, **place, tiled=True, blockxsize=64, blockysize=64, **kwargs)


def large(dtype: str = 'uint8') -> np.ndarray:
    return np.tile(pixels(dtype), (1, 4, 4))


def test_a_broken_scene_is_named(refuse: Refuse, model: Path, tmp_path: Path) -> None:
    for kind in BROKEN:
        folder = tmp_path / kind
        folder.mkdir()
        path = add(folder, kind)
        assert path.name in refuse('map', path, '--model', model, '--out', folder / 'map.tif')
        assert not (folder / 'map.tif').exists()


def test_a_scene_cut_short_keeps_the_blocks_before(
    run: Run, refuse: Refuse, model: Path, tmp_path: Path
) -> None:
    path = scene(tmp_path / 'scene.tif', large())
    whole, status = path.read_bytes(), path.stat()
    make = ['map', path, '--model', model, '--out', tmp_path / 'map.tif', '--block', 64, '--workers', 0]
    cut(path)
    assert 'scene.tif cannot be read' in refuse(*make)
    assert len(list(tmp_path.glob('.map.tif.parts/*.npz'))) > 2 and not (tmp_path / 'map.tif').exists()
    path.write_bytes(whole)
    assert status.st_size == path.stat().st_size
    run(*make)
    assert (tmp_path / 'map.tif').is_file()


@pytest.mark.slow
def test_a_scene_cut_short_is_named_by_the_process_that_reads_it(
    refuse: Refuse, model: Path, tmp_path: Path
) -> None:
    path = cut(scene(tmp_path / 'scene.tif', large()))
    make = ['map', path, '--model', model, '--out', tmp_path / 'map.tif', '--block', 64, '--workers', 1]
    assert 'scene.tif cannot be read' in refuse(*make)


def test_a_damaged_block_is_named(
    run: Run, refuse: Refuse, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = scene(tmp_path / 'scene.tif', large())
    make = ['map', path, '--model', model, '--out', tmp_path / 'map.tif', '--block', 128]
    with monkeypatch.context() as patch:
        patch.setattr(parts.Parts, 'remove', lambda self: None)
        run(*make)
    cut(tmp_path / '.map.tif.parts' / '000001.npz')
    assert '000001.npz is damaged: remove it' in refuse(*make)


@pytest.mark.parametrize('value', [0.0, np.nan])
def test_a_scene_without_data_gives_a_map_without_data(
    run: Run, refuse: Refuse, model: Path, tmp_path: Path, value: float
) -> None:
    path = scene(tmp_path / 'scene.tif', np.full((3, 128, 128), value, np.float32), nodata=value)
    named = ['--file-bands', 'red,green,blue']
    run('map', path, '--model', model, '--out', tmp_path / 'map.tif', *named)
    with rasterio.open(tmp_path / 'map.tif') as source:
        assert (source.read() == 255).all()
    sentence = refuse(
        'map', path, '--model', model, '--out', tmp_path / 'm.tif', *named, '--statistics', 'scene'
    )
    assert 'scene.tif contains only nodata' in sentence


def test_infinite_pixels_are_no_data(run: Run, model: Path, tmp_path: Path) -> None:
    values = large('float32')
    values[0, :100], values[1, 100:120] = np.inf, np.nan
    path = scene(tmp_path / 'scene.tif', values)
    run(*('map', path, '--model', model, '--out', tmp_path / 'map.tif', '--file-bands', 'red,green,blue'))
    with rasterio.open(tmp_path / 'map.tif') as source:
        found = source.read(1)
    assert (found[:120] == 255).all() and (found[120:] < 2).all()


def test_scenes_of_a_data_module(tmp_path: Path) -> None:
    folder = tmp_path / 'scenes'
    folder.mkdir()
    scene(folder / 'a.tif', large())
    names = spoil(folder, ('text as tiff', 'tiff cut short', 'two bands', 'link to nothing'))
    with pytest.warns(UserWarning, match='Skipping') as caught:
        datamodule = SceneDataModule(folder, patch_size=32, batch_size=4, length=8)
        datamodule.setup('fit')
    left_out = {
        str(w.message).split(': ')[0].rsplit('/', 1)[1] for w in caught if 'Skipping' in str(w.message)
    }
    assert left_out <= names and len(left_out) >= 3
    batch = next(iter(datamodule.train_dataloader()))
    assert batch['image'].shape[1:] == (3, 32, 32) and torch.isfinite(batch['image']).all()
