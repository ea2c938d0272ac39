"""What every data module does alike: batches, statistics, views, bands, broken files, arguments."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from lightning.pytorch import seed_everything
from matplotlib import pyplot as plt
from PIL import Image
from torch.testing import assert_close
from torch.utils.data import Subset

from benchmarks import datasets
from explora_geo import datamodules
from explora_geo.datamodules import Augment, FolderDataModule, Statistics, base
from explora_geo.transforms import ViewsConfig
from tests.conftest import DATA
from tests.data.broken.data import cut, pixels, raster

pytestmark = [
    pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning'),
    pytest.mark.filterwarnings('ignore::PendingDeprecationWarning:rasterio'),
]

Record = Callable[..., dict[str, list[dict[str, Any]]]]
Build = Callable[..., Any]
NAIP = DATA / 'naip'
VIEWS = ViewsConfig(global_size=16, local_size=8, num_local=2)
#: Data module, fixture or fake of its data set, and further arguments.
MODULES: dict[str, tuple[type[Any], str, dict[str, Any]]] = {
    'folder': (datamodules.FolderDataModule, 'tiles', {'val_split': 0.5}),
    'eurosat': (datamodules.EuroSATDataModule, 'eurosat_rgb/train jpg', {}),
    'eurosat of 13 bands': (datamodules.EuroSATDataModule, 'eurosat_ms tif', {}),
    'masks': (datamodules.MaskFolderDataModule, 'masks', {'val_split': 0.5}),
    'fmow': (datamodules.FMoWRGBDataModule, 'fmow', {}),
    'fmow sentinel': (datamodules.FMoWSentinelDataModule, 'fmow_sentinel', {}),
    'fmow temporal': (datamodules.FMoWTemporalDataModule, 'fmow', {'num_frames': 1}),
    'resisc45': (datasets.RESISC45DataModule, 'resisc45', {}),
    'naip': (datasets.NAIPLandCoverDataModule, 'naip_landcover', {}),
    'spacenet': (datasets.SpaceNet1DataModule, 'spacenet1', {}),
    'camelyon': (datasets.Camelyon17DataModule, 'camelyon17', {}),
    'camelyon unlabeled': (datasets.Camelyon17DataModule, 'camelyon17', {'unlabeled': True}),
    'iwildcam': (datasets.IWildCamDataModule, 'iwildcam', {}),
    'scenes': (
        datamodules.SceneDataModule,
        'scenes',
        {
            'val_paths': NAIP,
            'file_bands': ('red', 'green', 'blue', 'nir'),
            'length': 8,
            'patch_size': 32,
            'statistics': Statistics([100.0] * 4, [50.0] * 4),  # estimating takes seconds
        },
    ),
}
#: Those whose images are files, one each.
OF_FILES = [name for name in MODULES if name != 'scenes']


def _root(request: pytest.FixtureRequest, name: str) -> Path:
    """Make a small archive."""
    if name == 'scenes':
        return NAIP
    if ' ' in name:
        source, suffix = name.split()
        root: Path = request.getfixturevalue('tmp_path') / 'eurosat'
        for label in ('River', 'Forest'):
            for number, path in enumerate(sorted((DATA / source / label).glob(f'*.{suffix}'))[:12]):
                target = root / ('test' if number % 2 else 'train') / label / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return root
    fixture = name in ('tiles', 'masks', 'fmow', 'fmow_sentinel')
    return Path(request.getfixturevalue(name) if fixture else request.getfixturevalue('seed_data')(name))


def _other(path: Path, bands: int | None = None, deeper: bool = False) -> None:
    """Replace an image by a sound one of another number of bands, or of another range."""
    if path.suffix == '.npy':
        found = np.load(path)
    elif path.suffix == '.tif':
        with rasterio.open(path) as source:
            found = source.read().transpose(1, 2, 0)
    else:
        found = np.array(Image.open(path))
    count, kind = found.shape[-1], found.dtype
    if deeper:
        kind = np.dtype('uint16' if kind == np.uint8 else 'uint8')
    values = pixels(str(kind), bands or count)
    if path.suffix == '.npy':
        np.save(path, values.transpose(1, 2, 0))
    else:
        raster(path.with_suffix('.new.tif'), values).rename(path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    'cut short': cut,
    'empty': lambda path: path.write_bytes(b''),
    'two bands': lambda path: _other(path, bands=2),
    'another range': lambda path: _other(path, deeper=True),
}


def _files(dataset: Any) -> list[Path]:
    if isinstance(dataset, Subset):
        files = _files(dataset.dataset)
        return [files[i] for i in dataset.indices]
    found = dataset.files if hasattr(dataset, 'files') else list(dataset.table['path'])
    return [Path(path) for path in found]


def _spoil(dataset: Any, name: str) -> set[str]:
    """Damage a file in each way, as far as two sound ones are left, and return their names."""
    # fMoW-Sentinel's own files are of several types.
    kinds = {k: v for k, v in DAMAGE.items() if (name, k) != ('fmow sentinel', 'another range')}
    chosen = _files(dataset)[: min(len(kinds), len(dataset) - 2)]
    for path, damage in zip(chosen, kinds.values(), strict=False):
        damage(path)
    return {str(path) for path in chosen}


@pytest.fixture(params=MODULES)
def build(request: pytest.FixtureRequest) -> Build:
    """Build a data module of a small archive, not set up."""
    kind, name, kwargs = MODULES[request.param]
    root = _root(request, name)

    def make(**more: Any) -> Any:
        size = {} if request.param == 'scenes' else {'image_size': 32}
        return kind(root, **{'batch_size': 4, **size, **kwargs, **more})

    return make


def test_batches_are_normalized_and_the_same_for_the_same_seed(build: Build, record: Record) -> None:
    seen = []
    for _ in range(2):
        seed_everything(3)
        module = build()
        batches = record(module, max_epochs=2, limit_val_batches=1)
        seen.append(torch.cat([batch['image'] for batch in batches['train']]))
        assert seen[-1].shape[-3:] == (len(module.bands), 32, 32)
        assert torch.isfinite(seen[-1]).all() and 0.05 < seen[-1].std() < 5
        assert not any('views' in batch for batch in batches['train'] + batches['val'])
    assert torch.equal(*seen)
    first, second = seen[0].tensor_split(2)
    assert not torch.equal(first, second)


def test_statistics_are_the_same_in_every_stage_and_belong_to_their_bands(build: Build) -> None:
    module, other = build(), build()
    module.setup('fit')
    bands, mean, std = module.bands, module.mean, module.std
    for stage in ('validate', 'test', 'predict'):
        module.setup(stage)
    assert module.mean is mean and module.std is std
    other.setup('predict')
    assert torch.equal(other.mean, mean) and torch.equal(other.std, std)
    batch = next(iter(module.train_dataloader()))
    plain = module.aug({'image': batch['image']})['image']
    module.use_bands(bands[::-1])
    assert module.bands == bands[::-1]
    assert_close(module.aug({'image': batch['image']})['image'], plain.flip(-3))
    assert torch.equal(module.mean, mean.flip(0))
    with pytest.raises(ValueError, match='thermal'):
        module.use_bands(['thermal'])


@pytest.mark.parametrize('by', ['argument', 'objective', 'objective after setup'])
def test_training_batches_carry_the_views_that_are_asked_for(build: Build, by: str) -> None:
    module = build(augment=Augment(views=VIEWS)) if by == 'argument' else build()
    if by == 'objective after setup':
        module.setup('fit')
    if by != 'argument':
        module.use_views(VIEWS)
    module.setup('fit')
    batch = next(iter(module.train_dataloader()))
    size = len(batch['image'])
    found = module.train_aug(batch)
    flat = [view.flatten(0, -4) for view in found['views']]
    assert [view.shape[-3:] for view in flat] == [(len(module.bands), side, side) for side in (16, 8)]
    assert [len(view) for view in flat] == [2 * size, 2 * size]
    # Images of a batch with views are not cropped themselves.
    assert torch.equal(found['image'], module.aug(batch)['image'])
    assert 'views' not in module.aug(batch)
    if by != 'argument':
        module.use_views(None)
        assert 'views' not in module.train_aug(batch)


@pytest.mark.parametrize('told', [False, True])
def test_images_from_above_have_views_in_all_orientations_unless_views_say_otherwise(
    build: Build, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ViewsConfig] = []
    monkeypatch.setattr(base, 'MultiCrop', lambda views, *_: seen.append(views))
    module = build(augment=Augment(quarter_turns=True))
    module.use_views(replace(VIEWS, vertical_flip=False, quarter_turns=False) if told else VIEWS)
    module.setup('fit')
    vertical = module.nadir or module.augmentation.vertical_flip
    assert (seen[-1].vertical_flip, seen[-1].quarter_turns) == ((False, False) if told else (vertical, True))


def test_samples_are_plotted(build: Build) -> None:
    module = build()
    module.setup('fit')
    batch = next(iter(module.train_dataloader()))
    sample = {k: v[0] for k, v in batch.items() if k != 'skipped'}
    module.use_bands(module.bands[::-1][:2])
    for shown in (sample, {**sample, 'image': module.aug(batch)['image'][0]}):
        assert module.plot(shown) is not None
    plt.close('all')


def test_former_arguments_are_moved_with_a_warning(build: Build) -> None:
    moved = r'use augment\.crop_scale, augment\.quarter_turns, statistics\.std'
    with pytest.warns(FutureWarning, match=moved):
        former = build(std=[2.0], crop_scale=(0.5, 0.9), quarter_turns=True)
    now = build(augment=Augment((0.5, 0.9), quarter_turns=True), statistics=Statistics(std=[2.0]))
    assert (former.augment, former.statistics.std) == (now.augment, now.statistics.std)
    assert build(statistics={'std': [2.0]}).statistics == now.statistics  # as from a YAML file
    for kwargs, message in (
        ({'batch_size': 0}, 'batch_size must be at least 1'),
        ({'num_workers': -1}, 'num_workers must be at least 0'),
        ({'augment': Augment((0.0, 1.0))}, 'crop_scale must be'),
    ):
        with pytest.raises(ValueError, match=message):
            build(**kwargs)
    with pytest.raises(ValueError, match='has no train images'):
        build().train_dataloader()


@pytest.mark.parametrize(
    ('processes', 'batch', 'expected'), [(1, 8, 1), (2, 8, 1), (2, 10, 1), (2, 4, 1), (3, 2, 2)]
)
def test_every_process_has_a_batch_where_there_are_images(
    tiles: Path, processes: int, batch: int, expected: int
) -> None:
    for path in sorted(tiles.glob('*/*'))[10:]:
        path.unlink()
    module = FolderDataModule(tiles, image_size=32, batch_size=batch)
    module.setup('fit')
    strategy = SimpleNamespace(broadcast=lambda seed: seed)
    trainer: Any = SimpleNamespace(strategy=strategy, world_size=processes, global_rank=0)
    module.trainer = trainer
    assert len(module.train_dataloader()) == expected


@pytest.fixture(params=OF_FILES)
def archive(request: pytest.FixtureRequest) -> tuple[Callable[..., Any], dict[str, set[str]]]:
    """A data module to be built, and the files of its parts that are broken."""
    kind, name, kwargs = MODULES[request.param]
    root = _root(request, name)

    def build(**more: Any) -> Any:
        module = kind(root, image_size=32, batch_size=64, **kwargs, **more)
        for stage in ('fit', 'test'):
            module.setup(stage)
        return module

    sound = build()
    held_out = 'test' if len(sound.test_dataset or ()) > 2 else 'val'
    parts = {part: getattr(sound, f'{part}_dataset') for part in ('train', held_out)}
    broken = {part: _spoil(dataset, request.param) for part, dataset in parts.items() if len(dataset) > 2}
    return build, broken


def test_broken_files_are_named_and_the_others_come(
    archive: tuple[Callable[..., Any], dict[str, set[str]]],
) -> None:
    build, broken = archive
    module = build()
    assert len(broken['train']) >= 3
    for part, files in broken.items():
        batches = list(getattr(module, f'{part}_dataloader')())
        named = [text.split(': ')[0] for batch in batches for text in batch.get('skipped', ())]
        assert sorted(named) == sorted(files), part
        good = torch.cat([batch['image'] for batch in batches])
        assert len(good) == len(getattr(module, f'{part}_dataset')) - len(files)
        assert torch.isfinite(good).all()


def test_the_first_broken_file_is_an_error_where_that_is_wished(
    archive: tuple[Callable[..., Any], dict[str, set[str]]],
) -> None:
    build, broken = archive
    with pytest.raises(ValueError, match=r'strict=False') as caught:
        for _ in build(strict=True).train_dataloader():
            pass
    assert any(path in str(caught.value) for part in broken.values() for path in part)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    'content', [b'', b'\xff\xfe' * 9, b'a,b\n1,2\n', b'a,b\n1,2\n1,2,3\n', b'a,b\n1,2\n"'], ids=repr
)
@pytest.mark.parametrize(
    ('name', 'table'),
    [
        ('camelyon', 'camelyon17_v1.0/metadata.csv'),
        ('iwildcam', 'iwildcam_v2.0/metadata.csv'),
        ('naip', 'splits.npy'),
        ('naip', 'y_50_100.npy'),
    ],
)
def test_a_broken_table_is_named(
    seed_data: Callable[[str], Path], name: str, table: str, content: bytes
) -> None:
    kind, fake, _ = MODULES[name]
    file = seed_data(fake) / table
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf'{file}.* again$') as caught:
        kind(file.parents[table.count('/')], image_size=32).setup('fit')
    assert '\n' not in str(caught.value)
