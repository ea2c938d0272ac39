"""What every data set of tiles does alike, above all with a broken file: name it, return no image of it."""

import errno
import os
import pickle
import re
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import ImageFile
from rasterio.errors import RasterioIOError
from torch.utils.data import Subset

from explora_geo.datamodules.loader import ReplacingCollate, SkippingDataLoader
from explora_geo.datasets import (
    EuroSATDataset,
    FMoWRGB,
    FMoWSentinel,
    FMoWTemporal,
    FolderDataset,
    MaskFolderDataset,
    PackedDataset,
    images,
)
from explora_geo.datasets.base import TileDataset, collate_skipping
from explora_geo.datasets.files import find_images
from explora_geo.datasets.packed import pack
from tests.data.broken.data import BROKEN, ODD, add, plain, raster

pytestmark = [
    pytest.mark.filterwarnings('ignore::rasterio.errors.NotGeoreferencedWarning'),
    pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning'),
]


@pytest.fixture
def flat(tmp_path: Path, tiles: Path) -> Path:
    """Four sound tiles without classes."""
    folder = tmp_path / 'flat'
    folder.mkdir()
    for path in sorted(tiles.glob('River/*.jpg'))[:4]:
        shutil.copy(path, folder)
    return folder


def packed(root: Path) -> PackedDataset:
    out = root.parent / 'pack'
    list(pack(FolderDataset(root), out))
    return PackedDataset(out)


def masked(root: Path) -> MaskFolderDataset:
    images = root.parent / 'masked' / 'images'
    shutil.copytree(root, images, symlinks=True)
    for path in find_images(images):
        mask = images.parent / 'masks' / f'{path.stem}.tif'
        mask.parent.mkdir(exist_ok=True)
        raster(mask, np.zeros((1, 64, 64), dtype=np.uint8))
    return MaskFolderDataset(images.parent)


def listed(root: Path) -> TileDataset:
    return TileDataset(root, find_images(root), None, ())


#: Data sets of four tiles in a folder, then those of a layout of their own, by its fixture.
DATASETS: dict[str, Callable[..., Any]] = {
    'folder': FolderDataset,
    'pack': packed,
    'masks': masked,
    'list': listed,
}
LAYOUTS: dict[str, Callable[..., Any]] = {
    'fmow': FMoWRGB,
    'fmow_sentinel': FMoWSentinel,
    'fmow temporal': FMoWTemporal,
    'tiles': partial(EuroSATDataset, split=None),
}


@pytest.mark.parametrize('kind', BROKEN)
@pytest.mark.parametrize('name', DATASETS)
def test_a_broken_file_is_named_and_the_others_are_returned(
    flat: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Other libraries set this, and then Pillow fills what is missing with grey.
    monkeypatch.setattr(ImageFile, 'LOAD_TRUNCATED_IMAGES', True)
    broken = add(flat, kind)
    dataset = DATASETS[name](flat)
    samples = [dataset[i] for i in range(len(dataset))]
    (named,) = [sample['skipped'] for sample in samples if 'skipped' in sample]
    path, reason = named.split(': ', 1)
    assert Path(path).name == broken.name and re.search(BROKEN[kind][2], reason) and '\n' not in reason
    sound = [sample['image'] for sample in samples if 'image' in sample]
    assert len(sound) == 4 and all(torch.isfinite(image).all() for image in sound)
    dataset.strict = True
    with pytest.raises(
        ValueError, match=f'{re.escape(named)}; repair or remove the file, or set strict=False'
    ):
        dataset[samples.index({'skipped': named})]
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_small_images_are_not_used(flat: Path) -> None:
    path = raster(flat / 'z.tif', np.zeros((3, 20, 64), dtype=np.uint8))
    dataset = FolderDataset(flat, min_size=32)
    assert dataset[4] == {'skipped': f'{path}: size 20x64 is below the minimum of 32 pixels'}


@pytest.fixture(params=[*DATASETS, *LAYOUTS])
def dataset(request: pytest.FixtureRequest) -> Any:
    if request.param in DATASETS:
        return DATASETS[request.param](request.getfixturevalue('flat'))
    return LAYOUTS[request.param](request.getfixturevalue(request.param.split()[0]))


def test_every_data_set_is_a_sequence_of_tensors_that_workers_can_take(dataset: Any) -> None:
    dataset.transforms = mark
    last = len(dataset) - 1
    for found in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert len(found) == len(found.files) >= 4 and found[-1]['marked']
        assert found[-1]['image'].dtype == torch.float32
        assert found[-1]['image'].shape[-3] == len(found.bands)
        for key, value in found[last].items():
            assert key in ('marked', 'timestamps') or torch.equal(value, dataset[-1][key]) or value.ndim == 4
        with pytest.raises(IndexError):
            found[last + 1]
    catalog = dataset.catalog
    assert list(catalog['path']) == [str(path) for path in dataset.files] and catalog.crs == 'EPSG:4326'
    figure = dataset.plot({**dataset[0], 'prediction': torch.tensor(1)}, suptitle='A tile')
    titles = [axis.get_title() for axis in figure.axes]
    assert figure.get_suptitle() == 'A tile' and 'Prediction: ' in titles[0]
    if dataset.labels is not None:
        assert titles[0].startswith(f'Label: {dataset.classes[0]}')
        assert catalog['category'][0] == dataset.classes[0] and dataset[0]['label'].dtype == torch.int64
    plt.close('all')


def mark(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, 'marked': True}


@pytest.mark.parametrize('name', LAYOUTS)
def test_an_image_cut_short_is_named_in_every_layout(name: str, request: pytest.FixtureRequest) -> None:
    dataset = LAYOUTS[name](request.getfixturevalue(name.split()[0]))
    path = dataset.files[0]
    path.write_bytes(path.read_bytes()[:200])
    assert (
        dataset[0]['skipped'].startswith(f'{path}: cannot be read') and 'image' in dataset[len(dataset) - 1]
    )
    dataset.strict = True
    with pytest.raises(ValueError, match=f'{path.name}: cannot be read'):
        dataset[0]


def test_batches_leave_out_what_is_skipped_and_say_what_they_cannot_hold() -> None:
    good, bad = {'image': torch.ones(3, 8, 8), 'label': torch.tensor(1)}, {'skipped': 'a: bad'}
    assert set(collate_skipping([good] * 2)) == {'image', 'label'}
    batch = collate_skipping([good, bad, good])
    assert len(batch['image']) == 2 and batch['skipped'] == ['a: bad']
    assert collate_skipping([bad, bad]) == {'skipped': ['a: bad'] * 2}
    with pytest.raises(ValueError, match='set size'):
        collate_skipping([good, {'image': torch.ones(3, 9, 9)}])


@pytest.mark.parametrize('kind', ODD)
def test_an_odd_file_is_read_as_three_bands_of_8_bits(flat: Path, kind: str) -> None:
    path = add(flat, kind)
    dataset = FolderDataset(flat, strict=True)
    image = dataset[dataset.files.index(path)]['image']
    assert image.shape == (3, 64, 64) and 40 < image.mean() < 215 and image.std() > 20


@pytest.mark.parametrize('first', [True, False])
def test_one_image_of_another_range_is_the_odd_one_wherever_it_stands(flat: Path, first: bool) -> None:
    odd = add(flat, '16 bits').rename(flat / ('0.tif' if first else 'z.tif'))
    dataset = FolderDataset(flat)
    assert [dataset.files[i] for i in range(5) if 'skipped' in dataset[i]] == [odd]


def test_a_folder_called_like_an_image_is_a_folder(flat: Path) -> None:
    (flat / 'folder.jpg').mkdir()
    plain(flat / 'folder.jpg' / 'inside.png')
    assert flat / 'folder.jpg' / 'inside.png' in find_images(flat)
    assert len(find_images(flat)) == 5


def test_a_training_batch_without_a_usable_tile_draws_another_and_always_the_same(flat: Path) -> None:
    add(flat, 'empty jpeg')
    dataset = FolderDataset(flat)
    collate = ReplacingCollate(collate_skipping, dataset)
    first, second = (collate([dataset[4]]) for _ in range(2))
    assert first['image'].shape == (1, 3, 64, 64) and len(first['skipped']) == len(second['skipped']) >= 1
    assert torch.equal(first['image'], second['image'])
    broken = [dataset[4]] * 2
    with pytest.raises(ValueError, match='at least one usable tile, but all 3 were skipped'):
        ReplacingCollate(collate_skipping, Subset(dataset, [4]))(broken)


def test_a_batch_to_measure_without_a_usable_tile_is_left_out_by_name(flat: Path) -> None:
    add(flat, 'empty jpeg')
    dataset = FolderDataset(flat)
    loader = SkippingDataLoader(dataset, batch_size=2, collate_fn=collate_skipping)
    with pytest.warns(UserWarning, match=r'Skipping a batch of 1 unusable images \(first: .*z\.jpg'):
        assert [len(batch['image']) for batch in loader] == [2, 2]
    with (
        pytest.warns(UserWarning, match='Skipping a batch'),
        pytest.raises(ValueError, match=r'no images can be used \(first: .*z\.jpg'),
    ):
        list(SkippingDataLoader(Subset(dataset, [4])))


class Failing:
    """A reader in place of another that meets a failing machine."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


@pytest.mark.parametrize('suffix', ['.jpg', '.tif'])
@pytest.mark.parametrize('number', [errno.ENOMEM, errno.EMFILE, errno.EIO, errno.ESTALE, None])
def test_trouble_of_the_machine_is_no_damaged_tile(
    flat: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, number: int | None
) -> None:
    if suffix == '.tif':
        raster(flat / 'y.tif', np.zeros((3, 64, 64), dtype=np.uint8))
    dataset = FolderDataset(flat)
    index = [path.suffix for path in dataset.files].index(suffix)
    text = '' if number is None else os.strerror(number)
    own: Exception = MemoryError() if number is None else OSError(number, text)
    monkeypatch.setattr(images.Image, 'open', Failing(own))
    # GDAL keeps the text alone.
    gdal = MemoryError() if number is None else RasterioIOError(f'y.tif: {text}')
    monkeypatch.setattr(images.rasterio, 'open', Failing(gdal))
    with pytest.raises(type(own), match=text) as caught:
        dataset[index]
    assert number is None or caught.value.errno == number


@pytest.mark.parametrize('suffix', ['.jpg', '.tif'])
def test_too_many_open_files_are_no_damaged_tile(flat: Path, suffix: str) -> None:
    if suffix == '.tif':
        raster(flat / 'y.tif', np.zeros((3, 64, 64), dtype=np.uint8))
    dataset = FolderDataset(flat)
    index = [path.suffix for path in dataset.files].index(suffix)
    limits, held = resource.getrlimit(resource.RLIMIT_NOFILE), []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        with suppress(OSError):
            while True:
                held.append(open(os.devnull))
        with pytest.raises(OSError, match='Too many open files'):
            dataset[index]
    finally:
        for file in held:
            file.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert 'image' in dataset[index]


def test_a_mistake_in_the_code_is_no_damaged_tile(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = FolderDataset(flat)
    monkeypatch.setattr(images.Image, 'open', Failing(AttributeError('no such method')))
    with pytest.raises(AttributeError, match='no such method'):
        dataset[0]
