"""What every data set of tiles does alike, above all with a broken file: name it, return no image of it."""

import errno
import os
import pickle
import re
import resource
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from rasterio.errors import RasterioIOError
from torch.utils.data import Dataset, Subset

from explora_geo.datamodules.loader import ReplacingCollate, SkippingDataLoader
from explora_geo.datasets import FolderDataset, MaskFolderDataset, PackedDataset, images
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


DATASETS: dict[str, Callable[[Path], Dataset[Any]]] = {
    'folder': FolderDataset,
    'pack': packed,
    'masks': masked,
    'list': listed,
}


@pytest.mark.parametrize('kind', BROKEN)
@pytest.mark.parametrize('name', DATASETS)
def test_a_broken_file_is_named_and_the_others_are_returned(flat: Path, name: str, kind: str) -> None:
    broken = add(flat, kind)
    dataset: Any = DATASETS[name](flat)
    samples = [dataset[i] for i in range(len(dataset))]
    (named,) = [sample['skipped'] for sample in samples if 'skipped' in sample]
    path, reason = named.split(': ', 1)
    assert Path(path).name == broken.name and re.search(BROKEN[kind][2], reason) and '\n' not in reason
    sound = [sample['image'] for sample in samples if 'image' in sample]
    assert len(sound) == 4 and all(torch.isfinite(image).all() for image in sound)


@pytest.mark.parametrize('name', DATASETS)
def test_every_data_set_is_a_sequence_of_tensors_that_workers_can_take(flat: Path, name: str) -> None:
    dataset: Any = DATASETS[name](flat)
    dataset.transforms = mark
    for found in (dataset, pickle.loads(pickle.dumps(dataset))):
        assert len(found) == len(found.files) == 4 and found.bands == ('red', 'green', 'blue')
        assert found[-1]['image'].dtype == torch.float32 and found[-1]['marked']
        assert torch.equal(found[-1]['image'], found[3]['image'])
        with pytest.raises(IndexError):
            found[4]
    assert list(dataset.catalog['path']) == [str(path) for path in dataset.files]
    assert dataset.plot(dataset[0], suptitle='A tile').get_suptitle() == 'A tile'
    plt.close('all')


def mark(sample: dict[str, Any]) -> dict[str, Any]:
    return {**sample, 'marked': True}


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
    with pytest.raises(ValueError, match='at least one usable tile'):
        ReplacingCollate(collate_skipping, Subset(dataset, [4]))(broken)


def test_a_batch_to_measure_without_a_usable_tile_is_left_out_by_name(flat: Path) -> None:
    add(flat, 'empty jpeg')
    dataset = FolderDataset(flat)
    loader = SkippingDataLoader(dataset, batch_size=2, collate_fn=collate_skipping)
    with pytest.warns(UserWarning, match=r'A batch of 1 is left out, first .*z\.jpg'):
        assert [len(batch['image']) for batch in loader] == [2, 2]
    with (
        pytest.warns(UserWarning, match='left out'),
        pytest.raises(ValueError, match=r'No image can be used, first .*z\.jpg'),
    ):
        list(SkippingDataLoader(Subset(dataset, [4])))


class Failing:
    """A reader in place of another that meets a failing machine."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self.error


@pytest.mark.parametrize('suffix', ['.jpg', '.tif'])
@pytest.mark.parametrize('number', [errno.ENOMEM, errno.EMFILE, errno.EIO, errno.ESTALE])
def test_trouble_of_the_machine_is_no_damaged_tile(
    flat: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, number: int
) -> None:
    if suffix == '.tif':
        raster(flat / 'y.tif', np.zeros((3, 64, 64), dtype=np.uint8))
    dataset = FolderDataset(flat)
    index = [path.suffix for path in dataset.files].index(suffix)
    monkeypatch.setattr(images.Image, 'open', Failing(OSError(number, os.strerror(number))))
    # GDAL keeps the text alone.
    monkeypatch.setattr(images.rasterio, 'open', Failing(RasterioIOError(f'y.tif: {os.strerror(number)}')))
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        dataset[index]
    assert caught.value.errno == number


@pytest.mark.parametrize('suffix', ['.jpg', '.tif'])
def test_a_lack_of_memory_is_no_damaged_tile(
    flat: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    if suffix == '.tif':
        raster(flat / 'y.tif', np.zeros((3, 64, 64), dtype=np.uint8))
    dataset = FolderDataset(flat)
    monkeypatch.setattr(images.Image, 'open', Failing(MemoryError()))
    monkeypatch.setattr(images.rasterio, 'open', Failing(MemoryError()))
    with pytest.raises(MemoryError):
        dataset[[path.suffix for path in dataset.files].index(suffix)]


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
