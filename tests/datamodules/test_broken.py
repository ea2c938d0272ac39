"""Broken files in the archives of every data module: named in the batches, and the others come."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from torch.utils.data import Subset

from benchmarks import datasets
from explora_geo import datamodules
from tests.conftest import DATA
from tests.data.broken.data import cut, pixels, raster

pytestmark = [
    pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning'),
    pytest.mark.filterwarnings('ignore::PendingDeprecationWarning:rasterio'),
]

#: Data module, fixture or fake of its data set, and further arguments.
MODULES: dict[str, tuple[type[Any], str, dict[str, Any]]] = {
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
    'camelyon unlabelled': (datasets.Camelyon17DataModule, 'camelyon17', {'unlabelled': True}),
    'iwildcam': (datasets.IWildCamDataModule, 'iwildcam', {}),
}


def _root(request: pytest.FixtureRequest, name: str) -> Path:
    """Make a small archive."""
    if ' ' in name:
        source, suffix = name.split()
        root: Path = request.getfixturevalue('tmp_path') / 'eurosat'
        for label in ('River', 'Forest'):
            for number, path in enumerate(sorted((DATA / source / label).glob(f'*.{suffix}'))[:12]):
                target = root / ('test' if number % 2 else 'train') / label / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, target)
        return root
    fixture = name in ('masks', 'fmow', 'fmow_sentinel')
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
    with pytest.raises(ValueError, match=rf'{file}.* again\.') as caught:
        kind(file.parents[table.count('/')], image_size=32).setup('fit')
    assert '\n' not in str(caught.value)
