"""Looking at archives of every kind, on real tiles and on what users give by mistake."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import rasterio
import rasterio.shutil
import torch
from PIL import Image
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin
from shapely import box

from explora_geo.datamodules import FolderDataModule, SceneDataModule
from explora_geo.datamodules.archive import LabeledTiles, default_size, look
from explora_geo.datasets import FolderDataset
from explora_geo.datasets.packed import pack

DATA = Path(__file__).parents[1] / 'data'
RGB, MS, NAIP = DATA / 'eurosat_rgb', DATA / 'eurosat_ms', DATA / 'naip'
COLORS = 'red=4,green=3,blue=2'


def write_tif(
    path: Path, count: int, side: int = 64, dtype: str = 'uint8', value: int = 7, **options: Any
) -> Path:
    """Write a raster of one value; with `names`, `colors` or `crs` if given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names, colors = options.pop('names', None), options.pop('colors', None)
    profile = {'driver': 'GTiff', 'dtype': dtype, 'count': count, 'height': side, 'width': side, **options}
    if 'crs' in options:
        profile['transform'] = from_origin(500_000, 5_000_000, 10, 10)
    with rasterio.open(path, 'w', **profile) as file:
        file.write(np.full((count, side, side), value, dtype))
        if names:
            file.descriptions = names
        if colors:
            file.colorinterp = [getattr(ColorInterp, color) for color in colors]
    return path


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Twenty real JPEG tiles of two classes."""
    for name in ('River', 'Forest'):
        (tmp_path / 'tiles' / name).mkdir(parents=True)
        for path in sorted((RGB / 'test' / name).glob('*.jpg'))[:10]:
            shutil.copy(path, tmp_path / 'tiles' / name)
    return tmp_path / 'tiles'


def test_real_tiles_are_described_and_trained_on(tiles: Path) -> None:
    archive = look(tiles, patch_size=8)
    assert (archive.kind, archive.count, archive.size, archive.image_size) == ('tiles', 20, (64, 64), 64)
    assert archive.bands == archive.file_bands == ('red', 'green', 'blue')
    assert archive.classes == ('Forest', 'River') and archive.dtype == 'uint8' and archive.skipped == ()
    assert 0 <= archive.low < archive.high <= 255
    text = archive.sentences()
    assert text.startswith(f'{tiles}: 20 tiles of 64 px in 2 class folders, red, green, blue, uint8 from ')
    assert len(text.splitlines()) == 1
    datamodule = archive.datamodule(num_workers=0)
    assert isinstance(datamodule, FolderDataModule)
    datamodule.setup('fit')
    assert datamodule.bands == archive.bands and datamodule.batch_size == 20
    assert datamodule.mean.tolist() == pytest.approx([123.675, 116.28, 103.53])


def test_what_is_found_can_be_written_as_json_and_yaml_of_fit(tiles: Path) -> None:
    archive = look(tiles)
    assert json.loads(json.dumps(archive.facts()))['settings'] == archive.settings
    assert archive.settings['class_path'] == 'explora_geo.datamodules.FolderDataModule'


def test_bands_of_sentinel_2_are_numbered_by_the_user_and_scaled_by_their_own_statistics() -> None:
    archive = look(MS, COLORS)
    assert archive.bands == ('red', 'green', 'blue') and archive.file_bands[:5] == (
        'band1',
        'blue',
        'green',
        'red',
        'band5',
    )
    assert archive.dtype == 'uint16' and archive.high > 255 and 'of 13 bands' in archive.sentences()
    datamodule = archive.datamodule()
    datamodule.setup('fit')
    assert datamodule.bands == ('red', 'green', 'blue') and datamodule.mean.min() > 255
    with rasterio.open(datamodule.train_dataset.files[0]) as file:
        expected = file.read([4, 3, 2]).astype(np.float32)
    image = datamodule.train_dataset[0]['image']
    assert image.shape == (3, archive.image_size, archive.image_size)
    assert image.mean((1, 2)).numpy() == pytest.approx(expected.mean((1, 2)), rel=0.02)


def test_scenes_are_cut_into_windows() -> None:
    archive = look([NAIP / f for f in sorted(p.name for p in NAIP.glob('*.tif'))], 'red=1,green=2,blue=3')
    assert (archive.kind, archive.count, archive.image_size) == ('scenes', 2, 224)
    assert archive.crs == 'EPSG:26914' and 'EPSG:26914' in archive.sentences()
    datamodule = archive.datamodule(batch_size=2)
    assert isinstance(datamodule, SceneDataModule)
    datamodule.setup('fit')
    assert next(iter(datamodule.train_dataloader()))['image'].shape == (2, 3, 224, 224)


@pytest.mark.parametrize('how', ['file', 'pattern', 'folder', 'list', 'vrt', 'remote'])
def test_scenes_are_found_however_they_are_given(tmp_path: Path, how: str) -> None:
    options = {'names': ('red', 'green', 'blue'), 'crs': 'EPSG:32631', 'side': 512}
    path = write_tif(tmp_path / 'scenes' / 'one.tif', 3, **options)
    (tmp_path / 'list.txt').write_text(f'# scenes\n\n{path}\n')
    given = {
        'file': path,
        'pattern': tmp_path / '*' / 'o*.tif',
        'folder': path.parent,
        'list': tmp_path / 'list.txt',
        'vrt': path.with_suffix('.vrt'),
        'remote': f'/vsisubfile/0_{path.stat().st_size},{path}',
    }[how]
    if how == 'vrt':
        rasterio.shutil.copy(path, given, driver='VRT')
    archive = look(given, patch_size=14)
    assert (archive.kind, archive.count, archive.image_size, archive.images) == ('scenes', 1, 224, 4)
    datamodule = archive.datamodule(batch_size=2)
    datamodule.setup('fit')
    assert datamodule.bands == archive.bands == ('red', 'green', 'blue')


@pytest.mark.parametrize('suffix', ['txt', 'csv', 'parquet', 'geo.parquet'])
def test_lists_of_tiles_are_read_in_their_order(tiles: Path, suffix: str) -> None:
    names = [f'tiles/{p.parent.name}/{p.name}' for p in sorted(tiles.rglob('*.jpg'))[4:]][::-1]
    listed = tiles.parent / f'list.{suffix}'
    if suffix == 'txt':
        listed.write_text('\n'.join(names))
    elif suffix == 'csv':
        pd.DataFrame({'id': range(len(names)), 'Filename': names}).to_csv(listed)
    elif suffix == 'parquet':
        pd.DataFrame({'location': names}).to_parquet(listed)
    else:
        shapes = [box(0, 0, 1, 1)] * len(names)
        gpd.GeoDataFrame({'path': names}, geometry=shapes, crs=4326).to_parquet(listed)
    archive = look(listed, patch_size=8)
    assert (archive.kind, archive.count, archive.classes) == ('tiles', 16, ('Forest', 'River'))
    datamodule = archive.datamodule()
    datamodule.setup('fit')
    assert [str(p.relative_to(tiles.parent)) for p in datamodule.train_dataset.files] == names


def test_a_pattern_names_tiles(tiles: Path) -> None:
    archive = look(tiles / 'R*' / '*.jpg')
    assert (archive.count, archive.classes) == (10, ())
    archive.datamodule().setup('fit')


def test_a_pack_says_what_is_in_it(tiles: Path) -> None:
    list(pack(FolderDataset(tiles), tiles.parent / 'pack'))
    archive = look(tiles.parent / 'pack', patch_size=8)
    assert (archive.kind, archive.count, archive.size) == ('pack', 20, (64, 64))
    archive.datamodule().setup('fit')
    with pytest.raises(ValueError, match=r'cannot be renamed; use red, green, blue$'):
        look(tiles.parent / 'pack', 'nir=3')


def test_parts_of_a_data_set_are_no_classes() -> None:
    assert look(RGB).classes == () and look(RGB).count == 3000


@pytest.mark.parametrize(
    ('options', 'bands', 'expected'),
    [
        ({'count': 4, 'colors': ('red', 'green', 'blue', 'alpha')}, None, (0, 1, 2)),
        ({'count': 4, 'colors': ('blue', 'green', 'red', 'undefined')}, None, (2, 1, 0)),
        ({'count': 4, 'names': ('B02', 'B03', 'B04', 'B08')}, None, (2, 1, 0)),
        ({'count': 3, 'names': ('B', 'G', 'R')}, None, (2, 1, 0)),
        ({'count': 4, 'names': ('Red (665 nm)', 'Red edge', 'Green', 'Blue')}, None, (0, 2, 3)),
        ({'count': 4, 'names': ('coastal_blue', 'blue', 'green', 'red')}, None, (3, 2, 1)),
        ({'count': 2, 'names': ('coastal_blue', 'blue')}, 'blue', (1,)),
        ({'count': 2, 'names': ('Red (665 nm)', 'VV')}, ['Red (665 nm)'], (0,)),
        ({'count': 2, 'names': ('VV', 'VH')}, None, (0, 1)),
        ({'count': 1}, None, (0,)),
        ({'count': 3}, None, (0, 1, 2)),
        ({'count': 4, 'names': ('B02', 'B03', 'B04', 'B08')}, ['B08', 'red'], (3, 2)),
        ({'count': 4, 'names': ('B02', 'B03', 'B04', 'B08')}, 'red=1, nir=4', (0, 3)),
        ({'count': 5}, ['green=2'], (1,)),
    ],
)
def test_bands_are_found_by_name_color_or_number(
    tmp_path: Path, options: dict[str, Any], bands: Any, expected: tuple[int, ...]
) -> None:
    path = write_tif(tmp_path / 'a' / '1.tif', **options)
    with rasterio.open(path, 'r+') as file:
        for i in range(file.count):
            file.write(np.full((64, 64), i, file.dtypes[0]), i + 1)
    archive = look(tmp_path / 'a', bands)
    datamodule = archive.datamodule()
    datamodule.setup('fit')
    assert datamodule.train_dataset[0]['image'][:, 0, 0].tolist() == list(expected)


def test_few_files_unlike_the_others_are_named_and_skipped(tiles: Path) -> None:
    real = next(tiles.rglob('*.jpg'))
    for i in range(20):
        shutil.copy(real, tiles / 'River' / f'copy_{i}.jpg')
    (tiles / 'River' / 'broken.jpg').write_bytes(b'\xff\xd8 no picture')
    write_tif(tiles / 'River' / 'four.tif', 4, side=64)
    Image.new('L', (64, 64)).save(tiles / 'River' / 'grey.png')  # read as a colorless picture
    archive = look(tiles)
    assert {Path(text.split(': ')[0]).name for text in archive.skipped} == {'broken.jpg', 'four.tif'}
    second = archive.sentences().splitlines()[1]
    assert second.startswith('2 of 43 files checked cannot be used (first: ')


def test_nodata_and_the_range_of_the_others_are_measured(tmp_path: Path) -> None:
    pixels = np.full((1, 64, 64), 0.25, np.float32)
    pixels[:, :16] = -9999
    pixels[:, 16:32] = np.nan
    path = write_tif(tmp_path / 'a' / '1.tif', 1, dtype='float32', nodata=-9999, crs='EPSG:32631')
    with rasterio.open(path, 'r+') as file:
        file.write(pixels)
    archive = look(tmp_path / 'a')
    assert (archive.low, archive.high, archive.nodata) == (0.25, 0.25, 0.5)
    assert archive.sentences().splitlines()[1] == 'EPSG:32631, 50.0 % nodata.'


@pytest.mark.parametrize(
    ('side', 'patch', 'enlarge', 'expected'),
    [
        (64, 8, True, 64),
        (64, 14, True, 112),
        (64, 16, True, 128),
        (20, 14, True, 42),
        (100, 14, True, 112),
        (256, 14, True, 224),
        (600, 16, True, 224),
        (600, 16, False, 224),
        (100, 16, False, 96),
    ],
)
def test_images_suit_the_tiles_and_the_patches(side: int, patch: int, enlarge: bool, expected: int) -> None:
    assert default_size(side, patch, enlarge) == expected


def _empty(folder: Path) -> Path:
    (folder / 'notes.md').write_text('no image')
    return folder


def _mixed(folder: Path) -> Path:
    write_tif(folder / '3.tif', 3)
    return write_tif(folder / '4.tif', 4).parent


def _ranges(folder: Path) -> Path:
    write_tif(folder / '8.tif', 3)
    return write_tif(folder / '16.tif', 3, dtype='uint16').parent


def _damaged(folder: Path) -> Path:
    (folder / 'a.png').write_bytes(b'\x89PNG')
    return folder


def _list(text: str, name: str = 'list.txt') -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        (folder / name).write_text(text)
        return folder / name

    return write


BAD: list[tuple[Callable[[Path], Any], dict[str, Any], str]] = [
    (lambda f: f / 'nowhere', {}, r'the archive .*nowhere does not exist; check the path$'),
    (lambda f: f / '*.tif', {}, r'no files match .*\*\.tif; check the pattern$'),
    (lambda f: [], {}, r'the archive contains no images'),
    (_empty, {}, r'contains no images \(searched for JPEG, PNG, GeoTIFF'),
    (_mixed, {}, r'mixes files with [34] bands \(.*\.tif\) and with [34] bands \(.*\.tif\); keep one kind'),
    (_ranges, {}, r'mixes files with (8|16)-bit pixels \(.*\) and with (8|16)-bit pixels'),
    (_damaged, {}, r'none of the 1 files checked in .* can be read as an image \(first: .*a\.png: '),
    (lambda f: _empty(f) / 'notes.md', {}, r'none of the 1 files .* can be read as an image'),
    (
        lambda f: write_tif(f / '1.tif', 3, side=12).parent,
        {},
        r'12 x 12 pixels, smaller than a patch of 16 x 16',
    ),
    (
        lambda f: write_tif(f / '1.tif', 3),
        {},
        r'1\.tif has no coordinate reference system, so it is not a scene',
    ),
    (lambda f: NAIP, {}, r'4 uint8 bands, all unnamed .*bands=red=1,green=2,blue=3$'),
    (lambda f: write_tif(f / '1.tif', 3, dtype='uint16').parent, {}, r'3 uint16 bands, all unnamed'),
    (lambda f: write_tif(f / '1.tif', 3, dtype='uint16', names=('nir', '', '')).parent, {}, 'only nir named'),
    (
        lambda f: write_tif(f / '1.tif', 3).parent,
        {'bands': 'nir'},
        r'has no band nir, available bands: red, gr',
    ),
    (
        lambda f: write_tif(f / '1.tif', 3).parent,
        {'bands': 'nir=9'},
        r'bands=nir=9: .* must be between 1 and 3 in ',
    ),
    (lambda f: write_tif(f / '1.tif', 3).parent, {'bands': 'red,R'}, r'bands must be unique, got red, R'),
    (lambda f: write_tif(f / '1.tif', 3).parent, {'bands': ' '}, r'bands must name at least one band'),
    (
        lambda f: write_tif(f / '1.tif', 3).parent,
        {'image_size': 50},
        r'image_size must be a multiple of .*16',
    ),
    (lambda f: write_tif(f / '1.tif', 1, value=0, nodata=0).parent, {}, r'they contain only nodata'),
    (
        lambda f: [write_tif(f / '1.tif', 3)],
        {'kind': 'tiles'},
        r'to read .* as tiles, pass their folder, a pattern',
    ),
    (_list('\n# nothing\n'), {}, r'the list .*list\.txt contains no paths; add one path per line$'),
    (_list('id,name\n1,a.tif\n', 'list.csv'), {}, r"columns \['id', 'name'\] include none of path, location"),
    (_list('no table', 'list.parquet'), {}, r'list\.parquet cannot be read as a list of files \('),
    (_list('gone/1.tif\ngone/2.tif'), {}, r'none of the 2 files checked in .*first: .*gone/1\.tif: '),
]


@pytest.mark.parametrize(('make', 'options', 'message'), BAD)
def test_bad_archives_get_one_sentence(
    tmp_path: Path, make: Callable[[Path], Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        look(make(tmp_path), **options)
    assert '\n' not in str(error.value)


def test_labeled_tiles_are_read_as_the_archive_is(tiles: Path) -> None:
    archive = look(RGB / 'train', patch_size=8, image_size=32)
    datamodule = archive.datamodule()
    datamodule.setup('fit')
    labeled = LabeledTiles(tiles, archive, limit=10)
    assert labeled.classes == ('Forest', 'River') and len(labeled) == 10
    batches = list(labeled.batches(datamodule, 4))
    assert [tuple(b['image'].shape) for b in batches] == [(4, 3, 32, 32), (4, 3, 32, 32), (2, 3, 32, 32)]
    assert torch.cat([b['label'] for b in batches]).tolist() == [0] * 5 + [1] * 5
    assert batches[0]['image'].abs().max() < 4  # normalized


def test_labeled_tiles_of_the_same_files_have_the_bands_that_the_user_named() -> None:
    labeled = LabeledTiles(MS, look(MS, COLORS), limit=20)
    assert labeled.dataset.bands == ('red', 'green', 'blue') and len(labeled.classes) == 10


@pytest.mark.parametrize(
    ('folder', 'message'),
    [
        (RGB / 'train' / 'River', r'must be in at least two class folders, such as .*, found 0$'),
        (RGB, r'must be in at least two class folders'),
        (
            MS,
            r'have uint16 pixels, but the archive .* has uint8; use labeled tiles with the same pixel type$',
        ),
        (DATA / 'nowhere', r'the archive .*nowhere does not exist'),
    ],
)
def test_labels_that_do_not_fit_get_one_sentence(tiles: Path, folder: Path, message: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        LabeledTiles(folder, look(tiles))
